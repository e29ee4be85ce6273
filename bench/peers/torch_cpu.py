"""PyTorch as a participant of bench/cpu, on the CPU: lines of JSON on stdin and stdout, as bench/cpu/serve.mjs says."""

import json
import pathlib
import sys
import time

import torch

from cases import dense, learnt_tensors, mask_mod, read_safetensors, score_mod, visible

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
attention = torch.nn.functional.scaled_dot_product_attention
linear = torch.nn.functional.linear


def fill_modality(mask, case, named):
    """The bias of a modality term whose segments cover all keys, written once: faster than adding to zeros."""
    (term,) = case["bias"]
    for segment in term["segments"]:
        row = (named[segment["weights"]] - 0.5) * 2 * term["strength"]
        mask[..., segment["start"] : segment["start"] + segment["length"]] = row[:, None, :, None]
    return mask


def build(case, named, dtype):
    if [term["type"] for term in case["bias"]] == ["modality"]:
        return fill_modality(torch.empty(1, 1, *case["shape"][2:4], dtype=dtype), case, named)
    return dense(case, named, "cpu", dtype)


def sample(case, value, locations, weights):
    """Multi-scale deformable attention by grid_sample, a call a level."""
    batch, queries, heads, _, points, _ = locations.shape
    channels, samples, start = value.shape[3], [], 0
    for index, (height, width) in enumerate(case["levels"]):
        level = value[:, start : start + height * width].permute(0, 2, 3, 1)
        level = level.reshape(batch * heads, channels, height, width)
        start += height * width
        grid = (2 * locations[:, :, :, index] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(torch.nn.functional.grid_sample(level, grid, align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.cat(samples, dim=-1) * weights).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def prepare_deformable(case, named):
    names = ("value", "samplingLocations", "attentionWeights")
    if case["kind"] == "deformable":
        inputs = [named[name] for name in names]
        return lambda: sample(case, *inputs).contiguous(), named["gradOut"].numel() * 4
    with torch.inference_mode(False):
        inputs = [named[name].clone().requires_grad_() for name in names]
        grad_out = named["gradOut"].clone()
        # Backward needs the forward's intermediate results, so that it is kept and only its gradient timed.
        with torch.enable_grad():
            out = sample(case, *inputs)

    def backward():
        with torch.inference_mode(False):
            return torch.autograd.grad(out, inputs, grad_out, retain_graph=True)

    return backward, sum(tensor.numel() for tensor in inputs) * 4


def prepare_backward(case, way, named):
    """The gradients alone: the forward and what it keeps for them are made before, and kept."""
    case = {**case, "shape": case["qkv"]}
    with torch.inference_mode(False), torch.enable_grad():
        named = {name: tensor.clone() for name, tensor in named.items()}
        inputs = [named[name].requires_grad_() for name in ("query", "key", "value")]
        learnt = [] if way == "given" else [named[name].requires_grad_() for name in learnt_tensors(case)]
        if way == "flex":
            out = compile_flex(case, named, inputs)()
        else:
            out = attention(*inputs, attn_mask=build(case, named, torch.float32))

    def backward():
        with torch.inference_mode(False):
            return torch.autograd.grad(out, inputs + learnt, named["gradOut"], retain_graph=True)

    return backward, sum(tensor.numel() for tensor in inputs + learnt) * 4


def compile_flex(case, named, qkv):
    from torch.nn.attention.flex_attention import flex_attention

    if mask_mod(case, named) is not None:
        raise ValueError("only terms that add")
    mod, compiled = score_mod(case, named, "cpu"), torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(*qkv, score_mod=mod)


def multihead(case, named, mask):
    """What torch.nn.functional.multi_head_attention_forward computes, with the bias given and the query added."""
    query, key = named["query"], named["key"] + named["keyPos"]
    weights, biases = named["inProjWeight"].chunk(3), named["inProjBias"].chunk(3)
    inputs = (query, key, named["value"])
    q, k, v = (
        linear(x, w, b).unflatten(-1, (case["shape"][1], -1)).transpose(1, 2)
        for x, w, b in zip(inputs, weights, biases)
    )
    heads = attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    return query + linear(heads, named["outProjWeight"], named["outProjBias"])


def prepare(message):
    """(call, bytes of outputs that a call allocates)"""
    case, way = message["case"], message["way"]
    torch.set_num_threads(message["threads"])
    named, dtype = read_safetensors(message["inputs"]), DTYPES[case["dtype"]]
    if case["kind"] == "bias":
        size = case["shape"][2] * case["shape"][3] * dtype.itemsize
        if case["fresh"]:
            return lambda: build(case, named, dtype), size
        out = torch.ones(1, 1, *case["shape"][2:4], dtype=dtype)
        return lambda: fill_modality(out, case, named), 0
    if case["kind"].startswith("deformable"):
        return prepare_deformable(case, named)
    if case["kind"] == "attention-backward":
        return prepare_backward(case, way, named)
    qkv = [named[name] for name in ("query", "key", "value")]
    size = qkv[0].numel() * 4
    if case["kind"] == "multihead":
        if way == "built":
            return lambda: multihead(case, named, build(case, named, torch.float32)), size
        mask = build(case, named, torch.float32)
        return lambda: multihead(case, named, mask), size
    if way == "bf16 given":
        mask, low = build(case, named, torch.bfloat16), [tensor.bfloat16() for tensor in qkv]
        return lambda: attention(*low, attn_mask=mask), size // 2
    if way == "none":
        return lambda: attention(*qkv), size
    if way == "given":
        mask = build(case, named, torch.float32)
        return lambda: attention(*qkv, attn_mask=mask), size
    if way == "boolean":
        mask = visible(case, named, "cpu")
        return lambda: attention(*qkv, attn_mask=mask), size
    if way == "built":
        return lambda: attention(*qkv, attn_mask=build(case, named, torch.float32)), size
    if way == "flex":
        return compile_flex(case, named, qkv), size
    raise ValueError(f"no way {way}")


def peak(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


class Participant:
    def __init__(self):
        self.calls, self.outputs = {}, {}

    def prepare(self, message):
        self.calls[message["way"]] = prepare(message)
        return {"version": torch.__version__}

    def run(self, message):
        call, size = self.calls[message["way"]]
        self.outputs.pop(message["way"], None)  # freed before the clock starts
        before = None
        if message.get("memory"):
            try:
                pathlib.Path("/proc/self/clear_refs").write_text("5")
                before = peak("VmRSS")
            except OSError:
                pass
        start = time.perf_counter()
        output = call()
        reply = {"ms": (time.perf_counter() - start) * 1e3}
        if before is not None:
            reply["extraMib"] = max(0, peak("VmHWM") - before - size / 1024) / 1024
        self.outputs[message["way"]] = output
        return reply

    def output(self, message):
        output = self.outputs[message["way"]]
        if isinstance(output, tuple):
            output = torch.cat([tensor.flatten() for tensor in output])
        values = output.flatten()[:: message["stride"]].float().contiguous()
        values.numpy().tofile(message["path"])
        return {}

    def release(self, _):
        self.calls, self.outputs = {}, {}
        return {}


def main():
    participant = Participant()
    with torch.inference_mode():
        for line in sys.stdin:
            message = json.loads(line)
            try:
                reply = getattr(participant, message["op"])(message)
            except Exception as error:  # noqa: BLE001 - whatever PyTorch refuses with is said
                reply = {"skip": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
            print(json.dumps(reply), flush=True)


main()
