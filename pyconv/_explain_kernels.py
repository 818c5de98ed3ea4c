"""What explain asks and measures of any operator: the kernels of a list with their answers, and the machine's roof."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pyconv import _native
from pyconv._timing import alternate

NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Roof:
    """What the machine gives at most, measured: operations and bytes a second."""

    flops: float
    bandwidth: float

    def seconds(self, flops: int, moved: int) -> float:
        """The roofline bound: no kernel is faster (Williams et al., CACM 52(4), 2009)."""
        return max(flops / self.flops, moved / self.bandwidth)


def kernels() -> Any:
    if _native.lib is None:
        raise RuntimeError(f"explain: there are no kernels to ask: {_native.reason}")
    return _native.lib


@cache
def roof(dtype: torch.dtype, threads: int, megabytes: int) -> Roof:
    """Multiply-adds from registers, and a copy between two buffers of together `megabytes`; the best of some tries."""
    name = str(dtype).removeprefix("torch.")
    half = max(megabytes, 1) * 2**20 // 8
    source, target = torch.ones(half), torch.empty(half)
    copy = alternate({"copy": lambda: target.copy_(source)}, seconds=0.1)["copy"].fastest
    flops = max(kernels().measured_flops(name, threads, 0.02) for _ in range(5))
    return Roof(flops, 8 * half / copy)


@dataclass(frozen=True)
class Candidate:
    """One kernel of the list: its source, why it cannot run, and why it is not the choice ("" if it is)."""

    name: str
    source: str
    cannot: str
    refuses: str
    line: int = 0  # of the pass in that file, 0 where the sources are not installed

    @property
    def where(self) -> str:
        """csrc/cpu/conv2d/winograd.h:225"""
        return f"{self.source}:{self.line}" if self.line else self.source


@cache
def line_of(source: str, name: str) -> int:
    """Where a file begins the pass called `name`: its driver, which knows the type, before what chooses the type."""
    path = Path(__file__).parents[1] / source
    lines = path.read_text().splitlines() if path.exists() else []
    for pattern in (rf"void {name}\(.*\bT\* ", rf"(void|bool|int) (\w+_)?{name}\("):
        for number, text in enumerate(lines, start=1):
            if re.search(pattern, text):
                return number
    return 0
