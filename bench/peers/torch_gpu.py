"""PyTorch's ways to the attentions of bench/cases.json on one GPU: scaled_dot_product_attention (SDPA) with the bias as a
dense mask, given or built within the time, each backend by its name; compiled FlexAttention with the same bias
as a score_mod and a block mask; SDPA without a bias as a ceiling; and cudaMemset and eager PyTorch beside a dense bias.

Each peer's output is compared with SDPA's on a dense float32 mask first. Then come the times: medians of device events over
runs with fresh random inputs, the second-level cache overwritten before each, and the stream kept busy until all of a run is
queued, so that what the host does to launch it is not in the time. What is prepared before a run is not in it either: a
given mask, a block mask. Elsewhere than on a GPU the times are wall time, to try this program.

Prints a line of JSON for each figure as soon as it is there; ends with 1 where an output is wrong.

    python3 bench/peers/torch_gpu.py [--device cuda] [--small] [--runs 9] [--warmups 3] [--seconds 170] [--only NAME,NAME]
                                     [--check] [--own FOLDER] [--compile-only] [--eager]

--check: outputs only, no times. --own: also against what bench/gpu.mjs --dump wrote there. --compile-only: fills the caches
of torch.compile, which TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR place, and prints nothing. --eager: FlexAttention not
compiled. --seconds: no peer is begun after that. --only: names of cases; one that ends in * stands for all that begin so.
"""

import argparse
import ctypes
import json
import pathlib
import re
import signal
import statistics
import sys
import time
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import cases

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "float32": torch.float32, "bfloat16": torch.bfloat16}
# Relative L2 error against float32. A dense mask in bfloat16 rounds the bias itself: 2^-9 of a bias of 5 to 10.
TOLERANCES = {"f32": 1e-3, "bf16": 3e-2}
# One peer may not take the time of all others: a compilation that hangs, say.
PEER_SECONDS = 45

UNBIASED = ["flash unbiased", "efficient unbiased", "cudnn unbiased"]
GIVEN = ["sdpa given", "efficient given", "cudnn given"]
BUILT = ["sdpa built", "efficient built", "cudnn built"]
BOOLEAN = ["sdpa boolean", "efficient boolean", "cudnn boolean"]
# What the goals (bench/goals.mjs) need comes first, for the case that the time is up.
PLAN = [
    ("cmt modality", "bf16", ["flex", *GIVEN, *BUILT]),
    ("dense modality + spatial", "float32", ["cudaMemset", "zero_", "built"]),
    ("causal ALiBi 4096×64", "bf16", ["flash unbiased", "flex"]),
    ("causal ALiBi 4096×128", "bf16", ["flash unbiased", "flex"]),
    ("causal ALiBi 16384×64", "bf16", ["flash unbiased", "flex"]),
    ("causal ALiBi 16384×128", "bf16", ["flash unbiased", "flex"]),
    ("Swin", "bf16", [*GIVEN, "flex", "sdpa built"]),
    ("cmt none", "bf16", UNBIASED),
    ("cmt LAM windows", "bf16", ["flex", *BOOLEAN, "sdpa given", "sdpa built"]),
    ("cmt modality + spatial", "bf16", ["flex", "sdpa given", "efficient given", "sdpa built"]),
    ("DN self-attention", "bf16", ["flex", *BOOLEAN, "sdpa given"]),
    ("dense modality + spatial", "bfloat16", ["cudaMemset", "zero_", "built"]),
    ("cmt modality", "f32", ["sdpa given", "sdpa built", "flex"]),
    ("cmt none", "f32", ["efficient unbiased"]),
    ("cmt modality training", "f32", ["flex", "sdpa built"]),
    ("cmt modality training", "bf16", ["flex"]),
    ("causal ALiBi 4096×64", "bf16", [*UNBIASED[1:], *GIVEN]),
    ("causal ALiBi 4096×128", "bf16", [*UNBIASED[1:], *GIVEN]),
    ("causal ALiBi 16384×64", "bf16", [*UNBIASED[1:], *GIVEN]),
    ("causal ALiBi 16384×128", "bf16", [*UNBIASED[1:], *GIVEN]),
]


class TooLong(Exception):
    pass


def on_alarm(*_):
    raise TooLong(f"not done after {PEER_SECONDS} s")


class Attention:
    """One case in one precision: its inputs, and its peers as functions of no arguments."""

    def __init__(self, case, specs, device, precision, eager):
        self.case, self.device, self.dtype = case, device, DTYPES[precision]
        self.precision, self.eager = precision, eager
        self.inputs = cases.Inputs(case, specs, device, self.dtype)

    def reference(self, biased=True):
        """float32, one head after the other: a dense mask of all heads may not fit."""
        q, k, v = (tensor.float() for tensor in self.inputs.qkv)
        outs = []
        for h in range(q.shape[1]):
            one = slice(h, h + 1)
            mask = cases.dense(self.case, self.inputs.named, self.device, torch.float32, one) if biased else None
            causal = not biased and cases.is_causal(self.case)
            with sdpa_kernel(SDPBackend.MATH):
                attend = F.scaled_dot_product_attention
                outs.append(attend(q[:, one], k[:, one], v[:, one], attn_mask=mask, is_causal=causal))
        return torch.cat(outs, 1)

    def peer(self, name):
        """(prepare, run): what comes before the clock starts, and what is timed."""
        if name == "flex":
            return self._flex()
        backend, what = name.split()
        q, k, v = self.inputs.qkv
        named, case, state = self.inputs.named, self.case, {}

        def attend(mask=None, causal=False):
            if backend == "sdpa":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
            with sdpa_kernel(BACKENDS[backend]):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

        def build():
            return cases.dense(case, named, self.device, self.dtype)

        if what == "unbiased":
            return (lambda: None), (lambda: attend(causal=cases.is_causal(case)))
        if what == "given":
            return (lambda: state.update(mask=build())), (lambda: attend(state["mask"]))
        if what == "boolean":
            return (lambda: state.update(mask=cases.visible(case, named, self.device))), (lambda: attend(state["mask"]))
        if what == "built":
            return (lambda: None), (lambda: attend(build()))
        raise ValueError(name)

    def _flex(self):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        # From nothing for every case: past a number of variants one compiled function gives up and runs uncompiled.
        torch._dynamo.reset()
        attend = flex_attention if self.eager else torch.compile(flex_attention, dynamic=False, fullgraph=True)
        mod = cases.score_mod(self.case, self.inputs.named, self.device)
        mask = cases.mask_mod(self.case, self.inputs.named)
        queries, keys = self.case["shape"][2:4]
        state = {"block": None}

        def prepare():
            # Of a mask that depends on no tensor once; of windows, which move with their centres, for every run.
            if mask and (state["block"] is None or self.inputs.named.get("bevCenters") is not None):
                state["block"] = create_block_mask(mask, None, None, queries, keys, device=self.device)

        q, k, v = self.inputs.qkv

        def run():
            arguments = {"score_mod": mod, "block_mask": state["block"], "kernel_options": state.get("options")}
            return attend(q, k, v, **arguments)

        def first_run():
            # Few queries go to a decoding kernel, which refuses some shapes that the main one takes.
            try:
                out = run()
            except TooLong:
                raise
            except Exception:
                state["options"] = {"FORCE_USE_FLEX_ATTENTION": True}
                out = run()
            state["run"] = run
            return out

        return prepare, (lambda: state.get("run", first_run)())


class Training(Attention):
    """Forward and backward of one case: the gradients of query, key, value and of the terms' learnable tensors, one after
    the other. A dense mask is built within the time, since its gradient flows to those tensors."""

    def __init__(self, case, specs, device, precision, eager):
        super().__init__(case, specs, device, precision, eager)
        self.case = {**case, "name": f"{case['name']} training"}
        self.learnt = [self.inputs.named[name] for name in cases.learnt_tensors(case)]
        for tensor in (*self.inputs.qkv, *self.learnt):
            tensor.requires_grad_()
        self.grad_out = torch.randn_like(self.inputs.qkv[0])

    def gradients(self, attend):
        with torch.enable_grad():
            out = attend()
        grads = torch.autograd.grad(out, [*self.inputs.qkv, *self.learnt], self.grad_out.to(out.dtype))
        return torch.cat([grad.float().flatten() for grad in grads])

    def reference(self, biased=True):
        return self.gradients(lambda: super(Training, self).reference(biased))

    def peer(self, name):
        prepare, run = super().peer(name)
        return prepare, (lambda: self.gradients(run))


class Bias:
    """One dense bias in one dtype: writing as many bytes, and building it."""

    def __init__(self, case, specs, device, precision):
        self.case, self.device, self.dtype, self.precision = case, device, DTYPES[precision], precision
        self.inputs = cases.Inputs(case, specs, device, self.dtype)
        self.buffer = torch.empty(case["shape"], device=device, dtype=self.dtype)

    def peer(self, name):
        if name == "zero_":
            return (lambda: None), self.buffer.zero_
        if name == "built":
            return (lambda: None), (lambda: cases.dense(self.case, self.inputs.named, self.device, self.dtype))
        if name == "cudaMemset":
            return (lambda: None), memset(self.buffer)
        raise ValueError(name)


def memset(buffer):
    """cudaMemsetAsync of the runtime that PyTorch has loaded: zero_ is a kernel of its own."""
    if buffer.device.type != "cuda":
        raise RuntimeError("no CUDA device")
    path = re.search(r"/\S*libcudart[^/\s]*\.so\S*", pathlib.Path("/proc/self/maps").read_text())
    if not path:
        raise RuntimeError("PyTorch has loaded no CUDA runtime library")
    runtime = ctypes.CDLL(path.group())
    pointer, size = ctypes.c_void_p(buffer.data_ptr()), ctypes.c_size_t(buffer.numel() * buffer.element_size())

    def run():
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = runtime.cudaMemsetAsync(pointer, 0, size, stream)
        if status != 0:
            raise RuntimeError(f"cudaMemsetAsync: error {status}")

    return run


def relative_error(got, want) -> float:
    got, want = got.float(), want.float()
    return ((got - want).norm() / want.norm()).item()


def event_ms(prepare, run, draw, runs, warmups):
    """Milliseconds of each run after the warm-ups."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(warmups + runs):
        draw()
        prepare()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        flush.zero_()
        torch.cuda._sleep(4_000_000)  # about two milliseconds: until the host has queued what follows
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return times[warmups:]


def wall_ms(prepare, run, draw, runs, warmups):
    times = []
    for _ in range(warmups + runs):
        draw()
        prepare()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times[warmups:]


def reason_of(error, caught) -> str:
    """One line: what a backend warned of is its reason to refuse, and its error only says that it did."""
    said = [str(item.message).split("(Triggered")[0].strip().splitlines()[0] for item in caught if str(item.message)]
    refusal = [text for text in said if not text.endswith("because:")]
    first = (str(error).strip().splitlines() or [""])[0]
    return "; ".join(dict.fromkeys([f"{type(error).__name__}: {first}", *refusal]))[:400]


class Measurements:
    def __init__(self, options):
        self.options = options
        self.wrong = False
        self.deadline = time.monotonic() + options.seconds

    def print(self, **figure):
        if self.options.compile_only:
            return
        print(json.dumps(figure), flush=True)
        if figure["kind"] == "peer":
            problems = figure.get("problems", [])
            self.wrong |= bool(problems)
            text = figure.get("notRun") or (f"{figure['ms']:.4f} ms" if "ms" in figure else "checked")
            line = "; WRONG: ".join([f"{figure['name']}, {figure['precision']}, {figure['peer']}: {text}", *problems])
            print(line, file=sys.stderr, flush=True)

    def measure(self, work, name, expected=None, own=None):
        """One peer of one case: its output, held against `expected` and this package's `own`; then its times."""
        options = self.options
        figure = {"kind": "peer", "name": work.case["name"], "precision": work.precision, "peer": name}
        if time.monotonic() > self.deadline:
            return self.print(**figure, notRun="not begun: the time was up")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            signal.setitimer(signal.ITIMER_REAL, PEER_SECONDS)
            try:
                work.inputs.restore()
                prepare, run = work.peer(name)
                prepare()
                out = run()
                if expected is not None:
                    figure["error"] = relative_error(out, expected)
                    tolerance = TOLERANCES[work.precision]
                    if not figure["error"] <= tolerance:
                        figure["problems"] = [f"relative error {figure['error']:.1e} above {tolerance}"]
                    if own is not None:
                        figure["errorToOwn"] = relative_error(out, own.to(out.device))
                        if not figure["errorToOwn"] <= tolerance:
                            figure.setdefault("problems", []).append(f"{figure['errorToOwn']:.1e} from this package's output")
                del out
                if not (options.check or options.compile_only):
                    clock = event_ms if options.device == "cuda" else wall_ms
                    times = clock(prepare, run, work.inputs.draw, options.runs, options.warmups)
                    unit = "device events" if options.device == "cuda" else "wall"
                    figure.update(ms=statistics.median(times), least=min(times), most=max(times), runs=len(times), unit=unit)
            except Exception as error:  # a peer that can't is a result too
                figure["notRun"] = reason_of(error, caught)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        if options.device == "cuda":
            torch.cuda.empty_cache()
        self.print(**figure)


    def attention(self, work, peers):
        """All peers of one case."""
        own, expected, case = None, {}, work.case
        if self.options.own and not isinstance(work, Training):
            given = work.inputs.take(pathlib.Path(self.options.own) / f"{case['name']}.safetensors")
            problem = dense_problem(work, given["dense"])
            figure = {"kind": "peer", "name": case["name"], "precision": work.precision, "peer": "dense mask"}
            self.print(**figure, problems=[problem] if problem else [])
            own = given["out"]
        for peer in peers:
            biased = not peer.endswith("unbiased") or not cases.adds(case)
            if biased not in expected and not self.options.compile_only:
                work.inputs.restore()
                expected[biased] = work.reference(biased)
            self.measure(work, peer, expected.get(biased), own if biased else None)


def matches(name, wanted) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted


def dense_problem(attention, own) -> str:
    """What differs between the dense mask and this package's own bias, which may be broader."""
    mask = cases.dense(attention.case, attention.inputs.named, attention.device, torch.float32).cpu().expand_as(own)
    if not torch.equal(mask.isinf(), own.isinf()):
        return "another set of hidden pairs than this package's bias"
    difference = torch.where(own.isinf(), 0, mask - own).abs().max().item()
    return "" if difference < 1e-5 else f"{difference:.1e} from this package's bias"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--only", default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--own")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch_gpu.py: PyTorch sees no CUDA device", file=sys.stderr)
        return 3
    signal.signal(signal.SIGALRM, on_alarm)
    torch.manual_seed(time.time_ns() % 2**32)
    if hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit"):
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    attention, bias, specs = cases.load_cases(options.small)
    by_name = {case["name"]: case for case in [*attention, *bias]}
    measurements = Measurements(options)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "none: run on the CPU"
    measurements.print(kind="header", torch=torch.__version__, cuda=torch.version.cuda, gpu=gpu)
    for name, precision, peers in PLAN:
        if options.only and not any(matches(name, item) for item in options.only.split(",")):
            continue
        case = by_name[name.removesuffix(" training")]
        if name.startswith("dense"):
            if not (options.check or options.compile_only):
                work = Bias(case, specs, options.device, precision)
                for peer in peers:
                    measurements.measure(work, peer)
            continue
        peers = [peer for peer in peers if peer == "flex" or not options.compile_only]
        if not peers or time.monotonic() > measurements.deadline:
            for peer in peers:
                late = {"name": name, "precision": precision, "peer": peer}
                measurements.print(kind="peer", **late, notRun="not begun: the time was up")
            continue
        try:
            kind = Training if name.endswith(" training") else Attention
            measurements.attention(kind(case, specs, options.device, precision, options.eager), peers)
        except Exception as error:  # the case's own mask or reference, such as for want of memory
            measurements.print(kind="peer", name=name, precision=precision, peer="reference", problems=[reason_of(error, [])])
    return 1 if measurements.wrong else 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
