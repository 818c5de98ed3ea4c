"""What ptxas said of the kernels when setup.py built them: no GPU is needed to see a spill."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of the tuned kernels, the most registers any has on any GPU, as recorded; threads per block and 65536
# registers a multiprocessor make these 2, 3, 4, 6 and 4 blocks.
REGISTERS = {
    "implicit_gemm": 128,
    "tensor_cores": 168,
    "depthwise": 128,
    "direct": 80,
    "welford": 64,
}


def kernels():
    """(file, architecture, kernel, registers, bytes spilled) of every kernel in the last build."""
    for path in ROOT.glob("build/cuda-*/*.ptxas"):
        file = path.name.split(".")[-3]
        found = re.findall(
            r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, (\d+) bytes"
            r" spill loads.*?Used (\d+) registers",
            path.read_text(),
            re.S,
        )
        for name, arch, stores, loads, registers in found:
            yield file, arch, name, int(registers), int(stores) + int(loads)


@pytest.mark.skipif(not list(ROOT.glob("build/cuda-*/*.ptxas")), reason="built without nvcc")
def test_tuned_kernels_spill_nothing_and_keep_their_registers():
    seen = set()
    for file, arch, name, registers, spilled in kernels():
        if file in REGISTERS:
            seen.add(file)
            assert spilled == 0, f"{name} for {arch} spills {spilled} bytes"
            assert registers <= REGISTERS[file], f"{name} for {arch} uses {registers} registers"
    assert seen == set(REGISTERS)
