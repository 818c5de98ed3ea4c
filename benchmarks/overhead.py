"""What one call costs beside its arithmetic: images of (1, 4, 8, 8), in microseconds, beside torch's.

    python -m benchmarks overhead

Each operator forward without a gradient, forward with one wanted, and its backward pass as
torch.autograd.grad runs it. Median of interleaved rounds in one process, one thread. Results are
compared before they are timed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyconv import ops

ROUNDS, CALLS = 31, 100

Operator = Callable[..., Tensor]


def _statistics() -> tuple[Tensor, Tensor]:
    return torch.zeros(4), torch.ones(4)


def batch_norm(library: Any, training: bool) -> Operator:
    running = _statistics()
    return lambda x, weight, bias: library.batch_norm(x, *running, weight, bias, training)


def batch_norm_relu(library: Any, training: bool) -> Operator:
    running = _statistics()
    if library is ops:
        return lambda x, weight, bias: ops.batch_norm_relu(x, *running, weight, bias, training)
    return lambda x, weight, bias: F.relu(F.batch_norm(x, *running, weight, bias, training))


X, WEIGHT, ONES, ZEROS = (
    torch.randn(1, 4, 8, 8),
    torch.randn(4, 4, 3, 3),
    torch.ones(4),
    torch.zeros(4),
)
# Of each operator: how to make it from pyconv.ops or torch.nn.functional, and its operands.
OPERATORS: dict[str, tuple[Callable[[Any], Operator], tuple[Tensor, ...]]] = {
    "conv2d": (lambda library: library.conv2d, (X, WEIGHT, ZEROS)),
    "batch_norm, training": (lambda library: batch_norm(library, True), (X, ONES, ZEROS)),
    "batch_norm, evaluation": (lambda library: batch_norm(library, False), (X, ONES, ZEROS)),
    "batch_norm_relu, training": (lambda library: batch_norm_relu(library, True), (X, ONES, ZEROS)),
    "batch_norm_relu, evaluation": (
        lambda library: batch_norm_relu(library, False),
        (X, ONES, ZEROS),
    ),
    "max_pool2d": (lambda library: lambda x: library.max_pool2d(x, 2), (X,)),
    "avg_pool2d": (lambda library: lambda x: library.avg_pool2d(x, 2), (X,)),
    "adaptive_avg_pool2d": (lambda library: lambda x: library.adaptive_avg_pool2d(x, 1), (X,)),
}


def directions(operator: Operator, operands: tuple[Tensor, ...]) -> dict[str, Callable[[], Any]]:
    wanted = tuple(t.clone().requires_grad_() for t in operands)
    y = operator(*wanted)
    dy = torch.ones_like(y)
    return {
        "forward": lambda: operator(*operands),
        "forward, gradient wanted": lambda: operator(*wanted),
        "backward": lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True),
    }


def microseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(ours: Callable[[], Any], torchs: Callable[[], Any]) -> tuple[float, float]:
    torch.testing.assert_close(ours(), torchs())
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, taken in zip((ours, torchs), times, strict=True):
            taken.append(microseconds(call))
    return statistics.median(times[0]), statistics.median(times[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", default="", metavar="REGEX", help="of operators (all)")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    print(f"{'(1, 4, 8, 8), microseconds':<54}{'pyconv':>8}{'torch':>8}{'ratio':>8}")
    for name, (make, operands) in OPERATORS.items():
        if not re.search(args.filter, name):
            continue
        # Operators of their own for backward passes: running statistics that move later are refused by torch's.
        sides = [directions(make(library), operands) for library in (ops, F)]
        backward = [directions(make(library), operands)["backward"] for library in (ops, F)]
        for direction in sides[0]:
            pair = backward if direction == "backward" else [side[direction] for side in sides]
            ours, torchs = measure(*pair)
            print(f"{name + ', ' + direction:<54}{ours:8.1f}{torchs:8.1f}{torchs / ours:8.2f}")
    return 0
