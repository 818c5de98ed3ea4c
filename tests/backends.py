"""Where the operators of a test run: on the CPU's kernels, or on the CUDA kernels, emulated or on a GPU.

A test is parametrised by the name of a kernel. The name knows its backend, and the fixture of
conftest.py that every test has makes that backend the current one.
"""

import zlib
from contextlib import ExitStack, contextmanager

import torch

import pyconv
from pyconv import _native
from pyconv._emulator import ORDERS

BACKENDS = ["emu", "chk"] if _native.lib else []  # chk: every load and store watched
if torch.cuda.is_available():
    BACKENDS.append("cuda")


class Kernel(str):
    """The name of a CUDA kernel in pyconv.algorithms(), and the backend to run it on."""

    def __new__(cls, name, backend):
        kernel = super().__new__(cls, name)
        kernel.backend = backend
        return kernel

    def __str__(self):  # what pytest calls the test
        return f"{self.backend}-{self[:]}"

    def __format__(self, spec):  # what an error message calls it
        return format(self[:], spec)


def cuda_kernels(op):
    """Every CUDA kernel of `op` on every backend there is here: parameters called `algorithm`."""
    names = _native.lib.cuda_algorithms[op] if _native.lib else []
    return [Kernel(name, backend) for backend in BACKENDS for name in names]


@contextmanager
def backend_of(request):
    """The backend of a test's parameter `algorithm`. The emulator takes another order in each test."""
    callspec = getattr(request.node, "callspec", None)
    backend = getattr(callspec and callspec.params.get("algorithm"), "backend", "cpu")
    with ExitStack() as stack:
        if backend == "cuda":
            stack.enter_context(torch.device("cuda"))
        elif backend != "cpu":
            seed = zlib.crc32(request.node.nodeid.encode())
            order = ORDERS[seed % len(ORDERS)]
            report = stack.enter_context(
                pyconv.cuda_emulator(
                    backend == "chk", order=order, seed=seed, late_copies=bool(seed & 8)
                )
            )
        yield
    assert backend != "chk" or not report.errors, report
