"""One thing to time, with the proof that it computes what it should."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyconv._timing import once

# A layer's result this far from float64 is wrong, not rounded; Winograd's float32 stays below 1e-5.
LARGEST_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 5e-3,
}


class Unable(Exception):
    """The player cannot do this task; the message says why in one sentence."""


@dataclass
class Subject:
    """A call, its distance from float64, and what else is known of it."""

    call: Callable[[], object]
    error: float  # in the 2-norm, see `errors`
    max_error: float
    allowed: float
    about: dict[str, Any] = field(default_factory=dict)
    timer: Callable[[Callable[[], object], int], float] = lambda call, calls: once(
        call, calls, lambda: None
    )

    @property
    def right(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def seconds(self, calls: int) -> float:
        """Of one of `calls` calls, after an untimed one that wakes the threads."""
        self.call()
        return self.timer(self.call, calls)


def errors(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """|a - e| / |e| in the 2-norm, and in the maximum norm; e in float64."""
    difference = actual.detach().double().cpu() - expected
    found = []
    for order in (2, float("inf")):
        size = torch.linalg.vector_norm(expected, order).item()
        found.append(torch.linalg.vector_norm(difference, order).item() / (size or 1))
    return found[0], found[1]


def rotating(make: Callable[[], Callable[[], object]], bytes_each: int) -> Callable[[], object]:
    """A call whose operands were last used long ago: as many copies as overflow the last cache twice."""
    copies = [make() for _ in range(2 * last_cache_bytes() // max(bytes_each, 1) + 2)]
    turn = itertools.cycle(copies)
    return lambda: next(turn)()


def last_cache_bytes() -> int:
    """Of the first core's last-level cache; 32 MB where Linux does not say. (sysconf believes the host, not the VM.)"""
    sizes = {}
    for cache in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = ((cache / name).read_text().strip() for name in ("level", "size"))
        sizes[int(level)] = int(size.removesuffix("K")) * 1024
    return sizes[max(sizes)] if sizes else 2**25
