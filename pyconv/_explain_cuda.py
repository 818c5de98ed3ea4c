"""explain() for CUDA: the list of kernels that run on CUDA tensors and in the emulator, and their launches.

It needs no GPU and runs none of them, so it knows no seconds; `make gpu` measures.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pyconv import _native
from pyconv._emulator import build
from pyconv._explain_kernels import NAMES, Candidate, kernels, line_of
from pyconv._launches import Launch, launches

DEVICES = ("cpu", "cuda")
UNMEASURED = "explain: CUDA's kernels are not measured here; `make gpu` times them on a GPU"


@dataclass
class CudaPass:
    """One direction: who runs and with which launches, and who refused."""

    name: str
    chosen: str
    candidates: list[Candidate]
    tiling: str  # how the chosen kernel cuts its work, in its own file's words
    launches: list[Launch] = field(default_factory=list)
    launches_missing: str = ""  # why they could not be asked for
    bytes: int = 0  # of every tensor that a caller gives or gets, once


@dataclass
class CudaExplanation:
    """What `explain` found of CUDA's kernels; print it, or read its fields."""

    title: str
    dtype: torch.dtype
    channels_last: bool
    flops: int  # of a convolution, any direction; else 0
    passes: list[CudaPass]

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "NCHW"
        lines = [self.title, f"  on {NAMES[self.dtype]} {layout}, CUDA"]
        tilings: set[str] = set()
        for p in self.passes:
            work = f"{p.bytes / 1e6:.2f} MB compulsory"
            if self.flops:
                work = f"{self.flops / 1e6:.1f} MFLOP, {work}, {self.flops / p.bytes:.1f} FLOP per byte"
            lines.append(f"{p.name}: {p.chosen} runs; {work}")
            for k in p.candidates:
                able = "runs" if k.name == p.chosen else "could run, and is asked later"
                lines.append(f"    {k.name:<14} {k.cannot or k.refuses or able}  [{k.where}]")
            if p.tiling not in tilings:
                lines.append(f"    tiling of {p.chosen}: {p.tiling}")
                tilings.add(p.tiling)
            for launch, same in itertools.groupby(p.launches):
                lines += [f"    {line}" for line in launch.lines(len(list(same)))]
            if p.launches_missing:
                lines.append(f"    launches unknown: {p.launches_missing}")
        return "\n".join(lines)


def wanted(device: str | None, x: torch.Tensor) -> bool:
    """Whether the question is of CUDA: where the call would run, or where `device` says."""
    if device is None:
        return x.is_cuda or _native.emulates_cuda
    if device not in DEVICES:
        raise ValueError(f"explain: device must be one of {', '.join(DEVICES)}, got {device!r}")
    return device == "cuda"


def explain(
    title: str,
    dtype: torch.dtype,
    channels_last: bool,
    passes: dict[str, str],
    suffix: str,
    shape: tuple[Any, ...],
    moved: Callable[[str], int],
    flops: int = 0,
    *,
    measure: bool = False,
) -> CudaExplanation:
    """Of each direction of `passes`, which says how its entry point in the file of kernel {} is called.

    ask_cuda{suffix} and launches{suffix} of pyconv._C take `shape` and the direction; moved(direction)
    are the bytes.
    """
    if measure:
        raise ValueError(UNMEASURED)
    lib = kernels()
    found = []
    for name, entry in passes.items():
        candidates = [
            Candidate(kernel, source, cannot, refuses, line_of(source, entry.format(kernel)))
            for kernel, source, cannot, refuses in getattr(lib, f"ask_cuda{suffix}")(*shape, name)
        ]
        chosen = next(k for k in candidates if not k.refuses)
        p = CudaPass(name, chosen.name, candidates, tiling_of(chosen.source), bytes=moved(name))
        try:
            p.launches = launches(f"launches{suffix}", chosen.name, chosen.source, *shape, name)
        except RuntimeError as error:
            p.launches_missing = str(error).splitlines()[0]
        found.append(p)
    return CudaExplanation(title, dtype, channels_last, flops, found)


def tiling_of(source: str) -> str:
    """What the header of a kernel's file says under Tiling, in one line."""
    text = (build.sources() / source.removeprefix("csrc/")).read_text()
    found = re.search(r"^// Tiling +(.*?)\n// (?=\w)", text, re.S | re.M)
    return re.sub(r"\s*\n//\s*", " ", found[1]).strip() if found else ""
