"""The cases of bench/cases.json for PyTorch: their tensors, their bias as a dense mask, and the same bias as FlexAttention's
score_mod and mask_mod. A dense mask and a mod of one term are written apart, so that each checks the other; --own of
torch_gpu.py holds both against this package's own bias.
"""

import json
import pathlib
import struct

import torch

CASES = pathlib.Path(__file__).resolve().parent.parent / "cases.json"
HIDING = {"window", "denoising", "causal"}


def load_cases(small: bool):
    """(attention cases, bias cases, tensors' specifications), with sizes put in and terms in place of their names."""
    given = json.loads(CASES.read_text())
    sizes = given["sizes"]["small" if small else "full"]

    def put(value):
        if isinstance(value, dict):
            return {key: put(item) for key, item in value.items()}
        if isinstance(value, list):
            return [put(item) for item in value]
        return sizes[value[1:]] if isinstance(value, str) and value.startswith("$") else value

    terms = put(given["terms"])
    lists = [
        [{**case, "bias": [terms[name] for name in case["bias"]]} for case in put(given[kind])]
        for kind in ("attention", "bias")
    ]
    return lists[0], lists[1], put(given["tensors"])


class Inputs:
    """A case's query, key and value (none for a bias case) and its terms' tensors. draw() fills them anew where they are:
    what compiled code captured stays the same memory."""

    def __init__(self, case, specs, device, dtype):
        b, h, q, k = case["shape"][:4]
        names = _tensor_names(case["bias"], specs)
        self.specs = {name: specs[name] for name in names}
        self.named = {name: torch.empty(specs[name]["shape"], device=device) for name in names}
        self.qkv = ()
        if len(case["shape"]) == 5:
            d = case["shape"][4]
            self.qkv = tuple(torch.empty(b, h, n, d, device=device, dtype=dtype) for n in (q, k, k))
        self.draw()
        self.keep()

    def keep(self):
        """What restore() brings back: outputs are compared on the same inputs after others were timed."""
        self.kept = [tensor.clone() for tensor in (*self.qkv, *self.named.values())]

    def restore(self):
        for tensor, kept in zip((*self.qkv, *self.named.values()), self.kept):
            tensor.copy_(kept)

    def draw(self):
        for tensor in self.qkv:
            tensor.normal_()
        for name, tensor in self.named.items():
            spec = self.specs[name]
            if spec["draw"] == "uniform":
                tensor.uniform_()
            elif spec["draw"] == "normal":
                tensor.normal_()
            elif spec["draw"] == "cells":
                grid = torch.tensor(spec["grid"], device=tensor.device)
                tensor.copy_((torch.rand_like(tensor) * grid).floor())
            elif spec["draw"] == "slopes":
                heads = tensor.numel()
                tensor.copy_(2.0 ** (torch.arange(1, heads + 1) * (-8.0 / heads)))
            else:
                raise ValueError(spec["draw"])

    def take(self, path):
        """Puts in what bench/gpu.mjs --dump wrote, and returns all of it."""
        given = read_safetensors(path)
        for tensor, name in zip(self.qkv, ("query", "key", "value")):
            tensor.copy_(given[name])
        for name, tensor in self.named.items():
            tensor.copy_(given[name])
        self.keep()
        return given


def _tensor_names(value, specs):
    if isinstance(value, str):
        return [value] if value in specs else []
    if isinstance(value, dict):
        value = list(value.values())
    names = [name for item in value for name in _tensor_names(item, specs)] if isinstance(value, list) else []
    return list(dict.fromkeys(names))


def read_safetensors(path):
    """float32 tensors by name."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} is {entry['dtype']}")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(entry["shape"])
    return tensors


def learnt_tensors(case):
    """Names of the terms' tensors that learn, in the order in which the package returns their gradients."""
    names = []
    for term in case["bias"]:
        names += [segment["weights"] for segment in term.get("segments", []) if "weights" in segment]
        names += [term["table"]] if "table" in term else []
    return names


def hides(case) -> bool:
    return any(term["type"] in HIDING for term in case["bias"])


def adds(case) -> bool:
    return any(term["type"] not in HIDING for term in case["bias"])


def is_causal(case) -> bool:
    return any(term["type"] == "causal" for term in case["bias"])


# -----------------------------------------------------------------------------------------------------------------
# Dense masks


def _cells(grid, device):
    """view, y, x of each cell of a grid."""
    views, height, width = [1, *grid][-3:]
    index = torch.arange(views * height * width, device=device)
    return index // (height * width), index // width % height, index % width


def _own_view(centers, view):
    """[B, Q, cells]: whether a cell is of the query's view; true for a grid without views."""
    return centers[..., :1] == view if centers.shape[-1] == 3 else torch.ones((), dtype=torch.bool, device=view.device)


def _segment_mask(segment, named):
    """[B, Q, cells]: the cells round the centre that a window term leaves visible."""
    centers = named[segment["centers"]]
    view, y, x = _cells(segment["grid"], centers.device)
    half = segment["size"] // 2
    near = ((y - centers[..., -2:-1]).abs() <= half) & ((x - centers[..., -1:]).abs() <= half)
    return near & _own_view(centers, view)


def visible(case, named, device):
    """bool [1, 1, Q, K] of the terms that hide."""
    q, k = case["shape"][2:4]
    row, column = torch.arange(q, device=device)[:, None], torch.arange(k, device=device)
    mask = torch.ones(1, 1, q, k, dtype=torch.bool, device=device)
    for term in case["bias"]:
        if term["type"] == "causal":
            mask &= column <= row
        elif term["type"] == "denoising":
            size, count = term["groupSize"], term["groups"] * term["groupSize"]
            mask &= (column >= count) | ((row < count) & (row // size == column // size))
        elif term["type"] == "window":
            for segment in term["segments"]:
                near = _segment_mask(segment, named)
                mask[..., segment["start"] : segment["start"] + near.shape[-1]] &= near[:, None]
    return mask


def swin_index(window, device):
    """[T, T]: row of the relative position table for a query and a key of a window."""
    height, width = window
    token = torch.arange(height * width, device=device)
    y, x = token // width, token % width
    dy, dx = y[:, None] - y + height - 1, x[:, None] - x + width - 1
    return dy * (2 * width - 1) + dx


def swin_regions(term, device):
    """[nW, T]: the region of each token of each window of the shifted map, as Swin's img_mask numbers them."""
    (height, width), (mh, mw), (sh, sw) = term["resolution"], term["window"], term["shift"]
    image = torch.zeros(height, width, device=device)
    region = 0
    for ys in (slice(0, -mh), slice(-mh, -sh), slice(-sh, None)):
        for xs in (slice(0, -mw), slice(-mw, -sw), slice(-sw, None)):
            image[ys, xs] = region
            region += 1
    tiles = image.reshape(height // mh, mh, width // mw, mw).permute(0, 2, 1, 3)
    return tiles.reshape(-1, mh * mw).contiguous()


def dense(case, named, device, dtype, heads=slice(None)):
    """[1|B, 1|H, Q, K] of all terms, the way one builds it with PyTorch's operations; of some heads only where asked."""
    b, h, q, k = case["shape"][:4]
    types = [term["type"] for term in case["bias"]]
    if types == ["causal", "alibi"]:
        # One head after the other, since H distances in float32 are 17 GB at 16,384.
        slopes = named[case["bias"][1]["slopes"]][heads]
        distance = torch.arange(q, device=device)[:, None] - torch.arange(k, device=device)
        distance = torch.where(distance >= 0, distance, torch.inf).float()
        mask = torch.empty(1, len(slopes), q, k, device=device, dtype=dtype)
        for i in range(len(slopes)):
            torch.mul(distance, -slopes[i], out=mask[0, i])
        return mask
    if types == ["relativePosition", "shiftedWindow"]:
        table, shift = case["bias"]
        index = swin_index(table["window"], device)
        relative = named[table["table"]][:, heads][index].permute(2, 0, 1)
        region = swin_regions(shift, device)
        shifted = torch.where(region[:, None, :] == region[:, :, None], 0.0, float(shift.get("value", -100)))
        one = (relative[None] + shifted[:, None]).to(dtype)
        return one.repeat(b // one.shape[0], 1, 1, 1)
    mask = torch.zeros(1, 1, q, k, device=device, dtype=dtype)
    for term in case["bias"]:
        if term["type"] == "modality":
            for segment in term["segments"]:
                weights = named[segment["weights"]]
                row = (weights - 0.5) * 2 * term["strength"]
                mask[..., segment["start"] : segment["start"] + segment["length"]] += row[:, None, :, None].to(dtype)
        elif term["type"] == "spatial":
            for segment in term["segments"]:
                centers, weights = named[segment["centers"]], named[segment["weights"]]
                view, y, x = _cells(segment["grid"], device)
                distance = torch.hypot(y - centers[..., -2:-1], x - centers[..., -1:])
                value = weights[..., None] * term["strength"] * (1 - distance / segment["radius"]).clamp(min=0)
                value = value * _own_view(centers, view)
                mask[..., segment["start"] : segment["start"] + len(y)] += value[:, None].to(dtype)
        elif term["type"] not in HIDING:
            raise ValueError(f"no dense form of {term['type']}")
    return mask.masked_fill_(~visible(case, named, device), -torch.inf) if hides(case) else mask


# -----------------------------------------------------------------------------------------------------------------
# FlexAttention


def _cell_of(segment, j):
    """view, y, x of a key in a segment; of a key outside it, of a cell that is there."""
    views, height, width = [1, *segment["grid"]][-3:]
    index = (j - segment["start"]).clamp(0, views * height * width - 1)
    return index // (height * width), index // width % height, index % width


def _in_segment(segment, j):
    views, height, width = [1, *segment["grid"]][-3:]
    return (j >= segment["start"]) & (j < segment["start"] + views * height * width)


def _modality_mod(term, named):
    (first, second), strength = term["segments"], term["strength"]
    lidar, camera, split = named[first["weights"]], named[second["weights"]], second["start"]

    def mod(score, b, h, i, j):
        return score + (torch.where(j < split, lidar[b, i], camera[b, i]) - 0.5) * (2 * strength)

    return mod


def _spatial_segment_mod(segment, strength, named):
    centers, weights = named[segment["centers"]], named[segment["weights"]]
    views, radius = centers.shape[-1] == 3, segment["radius"]

    def mod(score, b, h, i, j):
        view, y, x = _cell_of(segment, j)
        dy = y - centers[b, i, 1 if views else 0]
        dx = x - centers[b, i, 2 if views else 1]
        value = weights[b, i] * strength * (1 - torch.sqrt(dy * dy + dx * dx) / radius).clamp(min=0)
        here = _in_segment(segment, j)
        if views:
            here = here & (view == centers[b, i, 0])
        return score + torch.where(here, value, 0.0)

    return mod


def _alibi_mod(term, named):
    slopes = named[term["slopes"]]

    def mod(score, b, h, i, j):
        return score - slopes[h] * (i - j).abs()

    return mod


def _table_mod(term, named):
    table, (height, width) = named[term["table"]], term["window"]

    def mod(score, b, h, i, j):
        index = (i // width - j // width + height - 1) * (2 * width - 1) + i % width - j % width + width - 1
        return score + table[index, h]

    return mod


def _shift_mod(term, device):
    region, value = swin_regions(term, device), float(term.get("value", -100))
    windows = region.shape[0]

    def mod(score, b, h, i, j):
        return score + torch.where(region[b % windows, i] == region[b % windows, j], 0.0, value)

    return mod


def score_mod(case, named, device):
    """All terms that add, as one score_mod; None where there is none."""
    mods = []
    for term in case["bias"]:
        if term["type"] == "modality":
            mods.append(_modality_mod(term, named))
        elif term["type"] == "spatial":
            mods += [_spatial_segment_mod(segment, term["strength"], named) for segment in term["segments"]]
        elif term["type"] == "alibi":
            mods.append(_alibi_mod(term, named))
        elif term["type"] == "relativePosition":
            mods.append(_table_mod(term, named))
        elif term["type"] == "shiftedWindow":
            mods.append(_shift_mod(term, device))
        elif term["type"] not in HIDING:
            raise ValueError(f"no score_mod of {term['type']}")
    if not mods:
        return None

    def every(score, b, h, i, j):
        for mod in mods:
            score = mod(score, b, h, i, j)
        return score

    return every


def _window_mask(segment, named):
    centers, half = named[segment["centers"]], segment["size"] // 2
    views = centers.shape[-1] == 3

    def mask(b, h, i, j):
        view, y, x = _cell_of(segment, j)
        dy = y - centers[b, i, 1 if views else 0]
        dx = x - centers[b, i, 2 if views else 1]
        near = (dy.abs() <= half) & (dx.abs() <= half)
        if views:
            near = near & (view == centers[b, i, 0])
        return near | ~_in_segment(segment, j)

    return mask


def mask_mod(case, named):
    """All terms that hide, as one mask_mod; None where there is none."""
    masks = []
    for term in case["bias"]:
        if term["type"] == "causal":
            masks.append(lambda b, h, i, j: j <= i)
        elif term["type"] == "denoising":
            size, count = term["groupSize"], term["groups"] * term["groupSize"]
            masks.append(lambda b, h, i, j: (j >= count) | ((i < count) & (i // size == j // size)))
        elif term["type"] == "window":
            masks += [_window_mask(segment, named) for segment in term["segments"]]
    if not masks:
        return None

    def every(b, h, i, j):
        seen = masks[0](b, h, i, j)
        for mask in masks[1:]:
            seen = seen & mask(b, h, i, j)
        return seen

    return every
