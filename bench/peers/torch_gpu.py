"""PyTorch's ways to the same attentions on one GPU: scaled_dot_product_attention with the bias as a dense mask, given or
built, compiled FlexAttention with the bias as a score_mod, and SDPA without a bias as a ceiling. Medians of device-event
times with fresh random inputs; prints JSON.

    python3 bench/peers/torch_gpu.py [--runs 9]
"""

import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F

LIDAR_KEYS, KEYS, STRENGTH = 32400, 56400, 5.0


def time_ms(make, run, runs: int) -> float:
    times = []
    for _ in range(runs + 3):
        inputs = make()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run(*inputs)
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times[3:])


def cmt_inputs(dtype):
    def make():
        q = torch.randn(1, 8, 900, 32, device="cuda", dtype=dtype)
        k, v = (torch.randn(1, 8, KEYS, 32, device="cuda", dtype=dtype) for _ in range(2))
        return q, k, v, torch.rand(1, 900, device="cuda"), torch.rand(1, 900, device="cuda")

    return make


def build(lidar, camera, dtype):
    bias = torch.empty(1, 1, 900, KEYS, device="cuda", dtype=dtype)
    bias[..., :LIDAR_KEYS] = ((lidar - 0.5) * 2 * STRENGTH)[:, None, :, None].to(dtype)
    bias[..., LIDAR_KEYS:] = ((camera - 0.5) * 2 * STRENGTH)[:, None, :, None].to(dtype)
    return bias


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    results = []

    def measure(name, make, run):
        try:
            results.append({"name": name, "ms": time_ms(make, run, runs)})
        except Exception as error:  # a peer that can't is a result too
            results.append({"name": name, "error": str(error).splitlines()[0][:200]})
        print(results[-1], file=sys.stderr)

    for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        make = cmt_inputs(dtype)
        measure(f"cmt SDPA no bias, {label}", make, lambda q, k, v, a, b: F.scaled_dot_product_attention(q, k, v))
        given = build(torch.rand(1, 900, device="cuda"), torch.rand(1, 900, device="cuda"), dtype)
        measure(
            f"cmt SDPA bias given, {label}",
            make,
            lambda q, k, v, a, b: F.scaled_dot_product_attention(q, k, v, attn_mask=given),
        )
        measure(
            f"cmt SDPA bias built, {label}",
            make,
            lambda q, k, v, a, b: F.scaled_dot_product_attention(q, k, v, attn_mask=build(a, b, q.dtype)),
        )
    try:
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention, dynamic=False)

        def flex(q, k, v, lidar, camera):
            def score_mod(score, b, h, i, j):
                weight = torch.where(j < LIDAR_KEYS, lidar[b, i], camera[b, i])
                return score + (weight - 0.5) * 2 * STRENGTH

            return compiled(q, k, v, score_mod=score_mod)

        for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
            measure(f"cmt FlexAttention modality, {label}", cmt_inputs(dtype), flex)
    except ImportError as error:
        results.append({"name": "FlexAttention", "error": str(error)})
    buffer = torch.empty(900 * KEYS, device="cuda")
    measure("dense bias: fill of the same buffer", lambda: (), lambda: buffer.fill_(1.0))
    print(json.dumps({"torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
