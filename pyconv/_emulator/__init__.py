"""CUDA kernels on a machine without a GPU.

with pyconv.cuda_emulator(check=True) as report:
    y = ops.conv2d(x, w)         # CPU tensors, computed by the CUDA kernels, one emulated thread after the other
print(report)                    # races, accesses out of bounds, and what each line asked of memory
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from pyconv import _native
from pyconv._emulator import build
from pyconv._emulator.report import Report

ORDERS = ("ascending", "descending", "random")


@contextmanager
def cuda_emulator(
    check: bool = False, *, order: str = "ascending", seed: int = 1, late_copies: bool = True
) -> Iterator[Report]:
    """Runs every pyconv operator called on CPU tensors inside it through the CUDA kernels.

    The kernels' own sources are compiled for the CPU when first used, in seconds, and cached. One
    fiber stands for each CUDA thread. Shared memory and outputs start as NaNs. A deadlock, a barrier
    that not every thread reaches, a misaligned access or an invalid launch raises RuntimeError in
    the operator, with the line of the kernel.

    Yields:
        a `Report`, filled when the block ends; empty without `check`.

    It is for the whole process, not for one thread of Python, and must not be nested.

    Args:
        check: also watch every load and store, some ten times slower. The report then lists races,
            accesses out of bounds, reads of what nobody wrote and writes to inputs (`errors`), and
            per source line the memory requests of warps, their sectors and bank conflicts
            (`traffic`). An access out of bounds raises RuntimeError in the operator as well.
        order: in which the threads of a block run where nothing else orders them: "ascending",
            "descending" or "random". A kernel that is right gives the same bits in each.
        seed: of "random".
        late_copies: asynchronous copies to shared memory happen at the last moment the wait for
            them allows, else as soon as they are issued.

    Raises:
        RuntimeError: the compiled half of pyconv, or a C++20 compiler, is missing; or it is nested.
        ValueError: there is no such order.
    """
    if _native.lib is None:
        raise RuntimeError(f"cuda_emulator: {_native.reason}")
    if order not in ORDERS:
        raise ValueError(f"cuda_emulator: order must be one of {', '.join(ORDERS)}, got {order!r}")
    if _native.emulates_cuda:
        raise RuntimeError("cuda_emulator: it is active already, and must not be nested")
    path = build.library("chk" if check else "emu")
    library, report = ctypes.CDLL(str(path)), Report()
    library.pyconv_emulator_configure(ORDERS.index(order), ctypes.c_uint64(seed), int(late_copies))
    _native.emulate_cuda(str(path))
    try:
        yield report
    finally:
        _native.emulate_cuda("")
        if check:
            report.read(library, path)
