"""What a CUDA kernel would be launched with, and what ptxas made of it: asked of its own launcher; nothing runs.

The library asked is pyconv/_cuda.so, nvcc's, or, where this build has none, the emulator's, which has the
same launchers and is compiled in some seconds when first needed. No GPU is needed for either.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pyconv import _native
from pyconv._emulator import build

COMPILED = Path(__file__).with_name("_cuda.so")


@dataclass(frozen=True)
class Multiprocessor:
    """What one has room for: threads, blocks, and bytes of shared memory; 65536 registers.

    Source: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
    """

    threads: int
    blocks: int
    shared: int

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """How many blocks of so many threads, registers a thread and bytes run at once: its occupancy.

        Each quarter of a multiprocessor has a quarter of the registers, given out by 256 to a warp; a
        block takes 1 KiB of shared memory more than it asks for.
        """
        warps = -(-threads // 32)
        by_registers = 4 * (65536 // 4 // (-(-registers * 32 // 256) * 256))
        return min(
            self.blocks,
            self.threads // 32 // warps,
            by_registers // warps,
            self.shared // (shared + 1024),
        )


GPUS = {
    "sm_80": Multiprocessor(2048, 32, 164 << 10),
    "sm_86": Multiprocessor(1536, 16, 100 << 10),
    "sm_89": Multiprocessor(1536, 24, 100 << 10),
    "sm_90": Multiprocessor(2048, 32, 228 << 10),
    "sm_100": Multiprocessor(2048, 32, 228 << 10),
    "sm_120": Multiprocessor(1536, 24, 100 << 10),
}


@dataclass(frozen=True)
class Compiled:
    """Of one kernel for one GPU, as ptxas said; threads are those that a multiprocessor runs at once."""

    registers: int
    spilled: int  # bytes
    blocks: int | None = None  # per multiprocessor; None for a GPU that GPUS does not know
    share: float | None = None  # of the threads that it has room for


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel as C++ names it, and what it asks for."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # bytes a block
    compiled: dict[str, Compiled] = field(
        default_factory=dict
    )  # by GPU; empty without nvcc's build

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    def lines(self, times: int = 1) -> list[str]:
        """For people: the launch, made so many times, then each GPU."""
        blocks = self.grid[0] * self.grid[1] * self.grid[2]
        found = [
            f"{self.kernel}{f', {times} times' if times > 1 else ''}: grid {self.grid},"
            f" {blocks} block{'s' if blocks > 1 else ''} of {self.threads} threads,"
            f" {self.shared} bytes of shared memory"
        ]
        for gpu, c in self.compiled.items():
            resident = (
                ""
                if c.share is None
                else f", {c.blocks} blocks at once on a multiprocessor, {c.share:.0%} of its threads"
            )
            spills = f"{c.spilled} bytes spilled" if c.spilled else "no spills"
            found.append(f"    {gpu}: {c.registers} registers, {spills}{resident}")
        return found


def launches(function: str, kernel: str, source: str, *shape: Any) -> list[Launch]:
    """Those of a kernel's pass; function and shape as pyconv._C names and takes them.

    Raises:
        RuntimeError: there is neither nvcc's build nor a compiler for the emulator.
    """
    path = COMPILED if COMPILED.exists() else build.library("emu")
    names, figures = symbols(path), compiled()
    found = []
    for offset, grid, block, shared in getattr(_native.lib, function)(str(path), kernel, *shape):
        name = names.get(offset, f"{offset:#x}")
        threads = block[0] * block[1] * block[2]
        made = {
            gpu: _with_occupancy(gpu, registers, spilled, threads, shared)
            for gpu, (registers, spilled) in figures.get((source, name), {}).items()
        }
        found.append(Launch(name, grid, block, shared, made))
    return found


def _with_occupancy(gpu: str, registers: int, spilled: int, threads: int, shared: int) -> Compiled:
    if gpu not in GPUS:
        return Compiled(registers, spilled)
    blocks = GPUS[gpu].resident(threads, registers, shared)
    return Compiled(registers, spilled, blocks, blocks * threads / GPUS[gpu].threads)


@cache
def symbols(path: Path) -> dict[int, str]:
    """The functions of a shared object by their offset, named for people; empty without nm."""
    if shutil.which("nm") is None:
        return {}
    command = ["nm", "--defined-only", str(path)]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    functions = (row.split() for row in rows if re.match(r"\w+ [tT] _Z", row))
    return {
        int(offset, 16): short(name)
        for offset, _, name in functions
        if "device_stub" not in name and "cold" not in name
    }


@cache
def compiled() -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """(source, kernel): {GPU: (registers, bytes spilled)} of nvcc's build; empty where there is none."""
    table = COMPILED.with_suffix(".ptxas")
    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for row in table.read_text().splitlines() if table.exists() and COMPILED.exists() else ():
        source, gpu, registers, spilled, name = row.split()
        found.setdefault((source, short(name)), {})[gpu] = int(registers), int(spilled)
    return found


def short(mangled: str) -> str:
    """gemm<Tile<64, 64>> of a mangled kernel."""
    text = re.sub(r"\(anonymous namespace\)::|pyconv::(\w+::)*", "", _demangled(mangled))
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:i]
            break
    return text.removeprefix("void ").replace("> >", ">>")


@cache
def _demangled(name: str) -> str:
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype, status = ctypes.c_void_p, ctypes.c_int()
    found = demangle(name.encode(), None, None, ctypes.byref(status))
    if not found:
        return name
    text = ctypes.string_at(found).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(found))
    return text
