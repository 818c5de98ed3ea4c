"""What nvcc made of the kernels, run: its host code, through tests/cudart.cpp, and its PTX, through tests/ptx.py.

The emulator compiles the kernels' C++ with g++ and never sees the inline PTX, the layout of parameters,
the launch configuration or the opt-in to more shared memory. Here they are all there is.
"""

import ctypes
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import pyconv
from pyconv import _native
from pyconv._emulator import build
from tests import cuda_table, mutants, ptx, ptx_instructions, test_mutants
from tests.mutants import CORES, DEPTHWISE, DIRECT, GEMM, PTX_MUTANTS
from tests.sass import tool

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(_native.lib is None, reason=_native.reason),
    pytest.mark.skipif(not list(ROOT.glob("build/cuda-*/*.ptx")), reason="built without nvcc"),
]
with_nvcc = pytest.mark.skipif(tool("nvcc") is None, reason="there is no nvcc")
FLAGS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-gencode=arch=compute_80,code=compute_80",
]
FLAGS += ["--no-compress", "-Xcompiler=-fPIC,-fvisibility=hidden"]
ADDRESSES = ctypes.POINTER(ctypes.c_void_p)
SIZE = ctypes.POINTER(ctypes.c_uint * 3)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, SIZE, SIZE, ctypes.c_size_t, ADDRESSES)
OPERAND = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)


def compiled(source, root, target):
    """`target`, nvcc's object of a .cu file that includes from `root`, whole or not at all."""
    part = target.with_suffix(".part")
    subprocess.run([tool("nvcc"), *FLAGS, f"-I{root}", "-c", source, "-o", part], check=True)
    return part.rename(target)


def objects():
    """The object of every .cu file that setup.py compiled last, by its place in csrc/cuda; its PTX lies beside it."""
    folder = max(ROOT.glob("build/cuda-*"), key=lambda p: p.stat().st_mtime)
    names = (str(p.relative_to(ROOT / "csrc/cuda")) for p in (ROOT / "csrc/cuda").rglob("*.cu"))
    return {name: folder / f"csrc.cuda.{name.replace('/', '.')}.o" for name in names}


@cache
def entries(path):
    """The text of every kernel of an object: of the PTX beside it, or of that inside it, which was not compressed."""
    beside = path.with_suffix(".ptx")
    texts = [beside.read_bytes()] if beside.exists() else []
    texts = texts or re.findall(rb"\.version .*?\0", path.read_bytes(), re.S)
    found = re.findall(r"(\.entry\s+([\w$]+).*?\n\}\n)", b"".join(texts).decode(), re.S)
    return {name: text for text, name in found}


@cache
def parsed(text):
    (kernel,) = ptx.parse(text).values()
    return kernel


class Machine:
    """nvcc's objects, some of them others, linked with a runtime that calls back to run their PTX."""

    def __init__(self, folder, others=None):
        used = {**objects(), **(others or {})}
        self.path = folder / "ptx.so"
        link = [build.compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-Wl,-Bsymbolic,-z,defs"]
        link += [Path(__file__).with_name("cudart.cpp"), *used.values(), "-o", self.path]
        subprocess.run(link, check=True)
        self.entries = {k: v for path in used.values() for k, v in entries(path).items()}
        self.memory, self.failure = ptx.Memory(), ""
        self.callbacks = LAUNCH(self.launch), OPERAND(self.operand)
        ctypes.CDLL(str(self.path)).pyconv_ptx_connect(*self.callbacks)

    def operand(self, name, data, size, writable):
        if name is None:
            self.memory.operands.clear()
        elif size:
            view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(data))
            self.memory.operands.append((name.decode(), data, view, bool(writable)))

    def launch(self, name, grid, block, shared_bytes, arguments):
        try:
            kernel = parsed(self.entries[name.decode()])
            places = list(kernel.parameters.values())
            held = bytearray(max(offset + size for offset, size in places))
            for i, (offset, size) in enumerate(places):
                held[offset : offset + size] = ctypes.string_at(arguments[i], size)
            sizes = tuple(grid.contents), tuple(block.contents)
            ptx.launch(
                kernel, *sizes, shared_bytes, bytes(held), self.memory, ptx_instructions.step
            )
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            return 719
        return 0

    def run(self, call):
        """call() with the operators on this machine."""
        self.failure = ""
        _native.emulate_cuda(str(self.path))
        try:
            return call()
        except RuntimeError as error:
            raise ptx.PtxError(f"{error}: {self.failure}") from error
        finally:
            _native.emulate_cuda("")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    pyconv.backends.cuda.allow_tf32 = True
    yield Machine(tmp_path_factory.mktemp("ptx"))
    pyconv.backends.cuda.allow_tf32 = False


@pytest.mark.parametrize("row", cuda_table.rows(), ids=str)
def test_every_kernel_computes_what_it_should(machine, row):
    call, right = row.work()
    mine = machine.run(call)
    assert all(map(cuda_table.is_right, mine, right))
    if row.op == "conv2d" and row.dtype == torch.float32 and row.kernel != "reference":
        with (
            pyconv.cuda_emulator()
        ):  # g++ and nvcc agree on every product, and on the order of every sum
            emulated = call()
        assert all(map(torch.equal, mine, emulated))


@pytest.mark.parametrize("file", [GEMM, CORES, DIRECT, DEPTHWISE])
def test_tails_strides_groups_and_splits(machine, file):
    for call, right in test_mutants.work(file):
        assert all(map(test_mutants.is_right, machine.run(call), right))


@with_nvcc
@pytest.mark.parametrize("mutant", PTX_MUTANTS, ids=str)
def test_a_mutant_that_only_nvcc_sees_is_noticed(mutant, tmp_path):
    source = mutant.through
    root = tmp_path / "csrc"
    shutil.copytree(build.sources(), root)
    place = root / "cuda" / mutant.file
    place.write_text(mutants.changed(place.read_text(), mutant))
    # Their work is of bfloat16, or of float32 in the kernel that has no other: the rest is not compiled.
    operands, every = (
        root / "cuda/operands.h",
        "dtype == DType::f32 ? f(float()) : dtype == DType::bf16 ? f(bf16()) : f(f16())",
    )
    assert every in operands.read_text()
    operands.write_text(operands.read_text().replace(every, "f(bf16())"))
    machine = Machine(
        tmp_path, {source: compiled(root / "cuda" / source, root, tmp_path / "other.o")}
    )
    noticed = "lives"
    for call, right in test_mutants.work(source):
        try:
            if not all(map(test_mutants.is_right, machine.run(call), right)):
                noticed = "wrong"
        except ptx.PtxError:
            noticed = "stopped"
        if noticed != "lives":
            break
    assert noticed == mutant.ptx
