"""Attention in a bfloat16 training step on the CPU: `minivl.nn.attention.attend` against torch's fused kernel.

    python -m bench.training

Forward and backward of self-attention at the sizes of small ViTs, interleaved in one run; medians of process
time, so that other work on the machine matters less. Above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minivl.nn.attention import attend

SIZES = ((64, 4, 145, 32), (12, 3, 197, 64), (8, 12, 197, 64))  # B, h, N, d


def step(attention: Callable[[Tensor, Tensor, Tensor], Tensor], size: tuple[int, int, int, int]) -> float:
    """Seconds of one forward and backward pass."""
    batch, heads, tokens, width = size
    q, k, v = (torch.randn(batch, tokens, heads, width, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
               for _ in range(3))
    begun = time.process_time()
    attention(q, k, v).sum().backward()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for size in SIZES:
        ours, fused = [], []
        for _ in range(args.repeats):
            ours.append(step(lambda q, k, v: attend(q, k, v)[0], size))
            fused.append(step(F.scaled_dot_product_attention, size))
        ratio = statistics.median(fused) / statistics.median(ours)
        medians = f"ours {statistics.median(ours) * 1e3:6.1f} ms   fused {statistics.median(fused) * 1e3:6.1f} ms"
        print(f"B {size[0]:>3}  h {size[1]:>2}  N {size[2]}  d {size[3]}   {medians}   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
