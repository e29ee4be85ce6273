"""PyTorch's scaled_dot_product_attention at the CMT shape with the two-segment modality bias, on the CPU: the peer that
the CPU backend is measured against. Prints one JSON line of medians in milliseconds.

    python3 bench/peers/torch_cpu.py [--threads 2] [--runs 7]
"""

import argparse
import json
import statistics
import time

import torch

BATCH, HEADS, QUERIES, KEYS, DIM = 1, 8, 900, 56400, 32
LIDAR_KEYS, STRENGTH = 32400, 5.0


def build(lidar: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
    """[1, 1, Q, K] from the weights [1, Q] of the two modalities."""
    bias = torch.empty(BATCH, 1, QUERIES, KEYS)
    bias[..., :LIDAR_KEYS] = ((lidar - 0.5) * 2 * STRENGTH)[:, None, :, None]
    bias[..., LIDAR_KEYS:] = ((camera - 0.5) * 2 * STRENGTH)[:, None, :, None]
    return bias


def median_ms(run, runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])  # the first is the warm-up


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    query = torch.randn(BATCH, HEADS, QUERIES, DIM)
    key = torch.randn(BATCH, HEADS, KEYS, DIM)
    value = torch.randn(BATCH, HEADS, KEYS, DIM)
    lidar, camera = torch.rand(BATCH, QUERIES), torch.rand(BATCH, QUERIES)
    given = build(lidar, camera)
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        result = {
            "peer": f"PyTorch {torch.__version__}",
            "threads": options.threads,
            "sdpa_bias_given_ms": median_ms(lambda: attention(query, key, value, attn_mask=given), options.runs),
            "sdpa_build_bias_ms": median_ms(
                lambda: attention(query, key, value, attn_mask=build(lidar, camera)), options.runs
            ),
            "sdpa_no_bias_ms": median_ms(lambda: attention(query, key, value), options.runs),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
