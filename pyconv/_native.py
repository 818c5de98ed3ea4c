"""Loads the compiled half once; `lib` is None, and `reason` says why, where it cannot be loaded.

Without it the operators still exist: pyconv._register implements them with the plain PyTorch of
pyconv.reference, slow but right, and this module says so once.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import torch  # noqa: F401  loads libtorch_cpu.so, which _C needs in the process

lib: ModuleType | None = None
reason = ""

if os.environ.get("PYCONV_NATIVE", "1") == "0":
    reason = "PYCONV_NATIVE=0 asks for the plain PyTorch reference"
else:
    try:
        lib = importlib.import_module("pyconv._C")
    except ImportError as error:
        reason = f"pyconv._C could not be loaded: {error}"
        warnings.warn(f"{reason}. Running the slow plain PyTorch reference instead.", stacklevel=2)
