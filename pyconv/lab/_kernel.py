"""Kernels of somebody's own, compiled for the emulator and called with tensors and numbers."""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyconv._emulator import ORDERS, build
from pyconv._emulator.report import Report

# A kernel at file scope that is no template, and what it takes.
_DEFINITION = re.compile(
    r"^__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*\{", re.M
)
_VALUES = {
    "bool": ctypes.c_bool,
    "int8": ctypes.c_int8,
    "uint8": ctypes.c_uint8,
    "int16": ctypes.c_int16,
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
}


@dataclass(frozen=True)
class Parameter:
    """Of a kernel: `const T*` is "in", `T*` is "out", all else a "value"."""

    name: str
    kind: str
    dtype: str


@dataclass(frozen=True)
class Result:
    """What `Kernel.check` saw; print it.

    values: for each order of threads "right", or what is wrong, or the sentence that ended the launch.
    report: errors and memory traffic, as of `pyconv.cuda_emulator`.
    """

    call: str
    values: dict[str, str]
    report: Report = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether every order gave the right values and no line has a finding."""
        return set(self.values.values()) == {"right"} and not self.report.errors

    def __str__(self) -> str:
        width = max(map(len, self.values))
        lines = [f"{order:<{width}}  {value}" for order, value in self.values.items()]
        return "\n".join([self.call, "", *lines, "", str(self.report)])


def kernel(path: str | Path, name: str = "") -> Kernel:
    """Compiles a .cu file for the emulator, in about a second, and returns one of its kernels.

    Args:
        path: a file of CUDA; its kernels stand at file scope and are no templates.
        name: of the kernel, where the file has several.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no such kernel, or no single one; a parameter's type is not one of the
            lab's: pointers to, or values of, integers, float and double; pointers to pyconv::bf16
            and pyconv::f16.
        RuntimeError: it does not compile, with the compiler's words; there is no C++20 compiler.
    """
    file = Path(path)
    found = {m[1]: m[2] for m in _DEFINITION.finditer(file.read_text())}
    if not name and len(found) == 1:
        name = next(iter(found))
    if name not in found:
        asked = f"no kernel called {name!r}" if name else "not one kernel but several, or none"
        has = ", ".join(found) or "none at file scope"
        raise ValueError(f"lab.kernel: {file.name} has {asked}; it has: {has}")
    exported = getattr(_library(file, "emu")[1], f"pyconv_lab_parameters_{name}")
    exported.restype = ctypes.c_char_p
    words = exported().decode().split()
    names = [re.findall(r"\w+", p)[-1] for p in found[name].split(",") if p.strip()]
    parameters = [Parameter(*p) for p in zip(names, words[::2], words[1::2], strict=True)]
    for p in parameters:
        if p.dtype == "?" or (p.kind == "value" and p.dtype not in _VALUES):
            raise ValueError(f"lab.kernel: {name}: the lab cannot pass a parameter like {p.name}")
    return Kernel(file, name, tuple(parameters))


@dataclass(frozen=True)
class Kernel:
    """A kernel of a .cu file, which `pyconv.lab.kernel` makes. Tensors are its pointers."""

    file: Path
    name: str
    parameters: tuple[Parameter, ...]

    def run(
        self,
        *arguments: Any,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        shared_bytes: int = 0,
        check: bool = False,
        order: str = "ascending",
        seed: int = 1,
        late_copies: bool = True,
    ) -> Report:
        """kernel<<<grid, block, shared_bytes>>>(arguments...), one emulated thread after the other.

        Args:
            arguments: a dense CPU tensor of the same dtype for each pointer, a number for each value.
            grid, block: blocks, and threads of a block, along x, y and z.
            shared_bytes: what shared<S>() may have.
            check: watch every access, and fill the report that is returned; else it is empty.
            order, seed, late_copies: as of `pyconv.cuda_emulator`.

        Raises:
            TypeError, ValueError: arguments do not fit, with the name of the parameter.
            RuntimeError: the emulator stopped the kernel, with the line and the reason.
        """
        values = self._values(arguments)
        if order not in ORDERS:
            raise ValueError(
                f"{self.name}: order must be one of {', '.join(ORDERS)}, got {order!r}"
            )
        path, library = _library(self.file, "chk" if check else "emu")
        library.pyconv_emulator_configure(
            ORDERS.index(order), ctypes.c_uint64(seed), int(late_copies)
        )
        if check:
            self._tell_operands(library, arguments)
        size = (ctypes.c_uint * 6)(*_three("grid", grid), *_three("block", block))
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        launch = getattr(library, f"pyconv_lab_launch_{self.name}")
        error = launch(size, ctypes.c_size_t(shared_bytes), addresses)
        report = Report()
        if check:
            library.pyconv_emulator_operand(None, None, ctypes.c_int64(0), 0)
            report.read(library, path)
        if error:
            library.pyconv_emulator_error.restype = ctypes.c_char_p
            raise Stopped(library.pyconv_emulator_error().decode(), report)
        return report

    def check(
        self,
        *arguments: Any,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        shared_bytes: int = 0,
        expected: Tensor | Sequence[Tensor],
        tolerance: float = 1e-5,
    ) -> Result:
        """Runs the kernel with its threads in several orders, every access watched, and judges it.

        Outputs start as NaN, or as the most negative integer, in each; a value is right if
        `abs(value - expected) <= tolerance * abs(expected).max()`, an integer if it is equal.

        Args:
            expected: what the `T*` parameters should hold, in their order; best in float64.
            The others: as of `run`.

        Raises:
            TypeError, ValueError: arguments do not fit, or `expected` does not.
        """
        self._values(arguments)
        outputs = [
            (p.name, a) for p, a in zip(self.parameters, arguments, strict=True) if p.kind == "out"
        ]
        wanted = [expected] if isinstance(expected, Tensor) else list(expected)
        if [t.shape for t in wanted] != [t.shape for _, t in outputs]:
            raise ValueError(
                f"{self.name}: expected must be of the shapes of"
                f" {', '.join(f'{name} {tuple(t.shape)}' for name, t in outputs)},"
                f" got {', '.join(str(tuple(t.shape)) for t in wanted)}"
            )
        values: dict[str, str] = {}
        reports = []
        for order in ORDERS:
            for _, out in outputs:
                out.fill_(torch.nan if out.is_floating_point() else torch.iinfo(out.dtype).min)
            try:
                more: dict[str, Any] = dict(grid=grid, block=block, shared_bytes=shared_bytes)
                reports.append(self.run(*arguments, **more, check=True, order=order))
                values[order] = _judge(outputs, wanted, tolerance)
            except Stopped as stopped:
                reports.append(stopped.report)
                values[order] = f"stopped: {stopped}"
        errors = {(e.line, e.other_line, e.kind): e for r in reversed(reports) for e in r.errors}
        sizes = f"{_three('grid', grid)}, {_three('block', block)}"
        return Result(
            f"{self.file.name}: {self.name}<<<{sizes}>>>",
            values,
            Report(sorted(errors.values(), key=lambda e: e.line), reports[0].traffic),
        )

    def _values(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as C has them, the addresses of tensors."""
        takes = ", ".join(p.name for p in self.parameters)
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.name}: takes ({takes}), got {len(arguments)} arguments")
        values: list[Any] = []
        for p, a in zip(self.parameters, arguments):
            if p.kind == "value":
                if isinstance(a, Tensor):
                    raise TypeError(f"{self.name}: {p.name} must be a number, got a tensor")
                values.append(_VALUES[p.dtype](a))
                continue
            if not isinstance(a, Tensor) or a.device.type != "cpu":
                raise TypeError(f"{self.name}: {p.name} must be a CPU tensor, got {type(a)}")
            if str(a.dtype) != f"torch.{p.dtype}":
                raise TypeError(f"{self.name}: {p.name} must be {p.dtype}, got {a.dtype}")
            if not a.is_contiguous():
                raise ValueError(f"{self.name}: {p.name} must be contiguous")
            values.append(ctypes.c_void_p(a.data_ptr()))
        return values

    def _tell_operands(self, library: ctypes.CDLL, arguments: Sequence[Any]) -> None:
        for p, a in zip(self.parameters, arguments):
            if p.kind != "value":
                library.pyconv_emulator_operand(
                    p.name.encode(),
                    ctypes.c_void_p(a.data_ptr()),
                    ctypes.c_int64(a.nbytes),
                    int(p.kind == "out"),
                )


def _library(file: Path, tier: str) -> tuple[Path, ctypes.CDLL]:
    """The file's shared object, compiled if the cache has none of this text."""
    text = file.read_text()
    exports = "".join(f"PYCONV_LAB({m[1]})\n" for m in _DEFINITION.finditer(text))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, file.name)
        source.write_text(
            f'#include "cuda/vocabulary.h"\n#line 1 "{file.name}"\n{text}\n'
            f'#include "emulator/lab.h"\n{exports}'
        )
        path = build.build([source], tier)
    return path, ctypes.CDLL(str(path))


class Stopped(RuntimeError):
    """The emulator ended a launch; `report` is what it had seen."""

    def __init__(self, why: str, report: Report):
        super().__init__(why)
        self.report = report


def _three(what: str, size: int | Sequence[int]) -> tuple[int, ...]:
    given = (size,) if isinstance(size, int) else tuple(size)
    if not 1 <= len(given) <= 3:
        raise ValueError(f"{what} must be one to three numbers, got {size}")
    return (*given, 1, 1)[:3]


def _judge(outputs: list[tuple[str, Tensor]], wanted: list[Tensor], tolerance: float) -> str:
    """ "right", or which values are not."""
    for (name, out), right in zip(outputs, wanted, strict=True):
        if not out.numel():
            continue
        scale = right.abs().max().item() if out.is_floating_point() else 0
        wrong = ~((out.double() - right.double()).abs() <= tolerance * scale)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            return (
                f"wrong: {int(wrong.sum())} of {out.numel()} values of {name}, the first"
                f" {name}{list(at)} = {out[at].item():.6g}, should be {right[at].item():.6g}"
            )
    return "right"
