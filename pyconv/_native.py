"""Loads the compiled half once; `lib` is None, and `reason` says why, where it cannot be loaded.

Without it the operators still exist: pyconv._register implements them with the plain PyTorch of
pyconv.reference, slow but right, and this module says so once.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch  # loads libtorch_cpu.so, which _C needs in the process

lib: ModuleType | None = None
reason = ""
emulates_cuda = (
    False  # CPU tensors run on CUDA kernels; here and not in lib, so that torch.compile can ask
)
_emulated = ""  # the shared object they run on
cuda_reason = ""  # why CUDA tensors cannot be computed with; "" where they can

if os.environ.get("PYCONV_NATIVE", "1") == "0":
    reason = "PYCONV_NATIVE=0 asks for the plain PyTorch reference"
else:
    try:
        lib = importlib.import_module("pyconv._C")
    except ImportError as error:
        reason = f"pyconv._C could not be loaded: {error}"
        warnings.warn(f"{reason}. Running the slow plain PyTorch reference instead.", stacklevel=2)


def emulate_cuda(path: str) -> None:
    """From now on CPU tensors run on the CUDA kernels of this shared object; "" for the CPU's again."""
    global emulates_cuda, _emulated
    lib.emulate_cuda(path)  # type: ignore[union-attr]
    emulates_cuda, _emulated = bool(path), path


@contextmanager
def without_emulation() -> Iterator[None]:
    """CPU tensors run on the CPU's kernels inside."""
    path = _emulated
    if path:
        emulate_cuda("")
    try:
        yield
    finally:
        if path:
            emulate_cuda(path)


def _load_gpu_kernels() -> str:
    """Loads pyconv/_cuda.so where there is a GPU to run it on; returns why not, "" if it is loaded."""
    path = Path(__file__).with_name("_cuda.so")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not path.exists():
        return "this build of pyconv has no CUDA kernels"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        lib.use_gpu_kernels(str(path))  # type: ignore[union-attr]
    except RuntimeError as error:
        return str(error)
    return ""


cuda_reason = _load_gpu_kernels() if lib else reason
