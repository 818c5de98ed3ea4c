"""What one call costs before any arithmetic: conv2d of (1, 1, 8, 8), in microseconds, beside torch's.

    python -m benchmarks overhead

Median of interleaved rounds in one process, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pyconv import ops

ROUNDS, CALLS = 31, 300


def microseconds(row: Callable[[Callable], object], conv: Callable) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        row(conv)
    return (time.perf_counter() - start) / CALLS * 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    x, w, b = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3), torch.randn(1)
    torch.testing.assert_close(ops.conv2d(x, w, b), F.conv2d(x, w, b))
    xg, wg, bg = (t.clone().requires_grad_() for t in (x, w, b))
    rows = {
        "forward, no gradient": lambda conv: conv(x, w, b),
        "forward, gradient wanted": lambda conv: conv(xg, wg, bg),
        "forward and backward": lambda conv: conv(xg, wg, bg).sum().backward(),
    }
    print(f"{'conv2d (1,1,8,8), 3x3, us':<28}{'pyconv':>8}{'torch':>8}")
    for name, row in rows.items():
        times: dict[Callable, list[float]] = {ops.conv2d: [], F.conv2d: []}
        for _ in range(ROUNDS):
            for conv in times:
                times[conv].append(microseconds(row, conv))
        ours, torchs = (statistics.median(t) for t in times.values())
        print(f"{name:<28}{ours:8.1f}{torchs:8.1f}")
    return 0
