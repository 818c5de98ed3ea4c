"""What ptxas said of the kernels when setup.py built them, and what it wrote: no GPU is needed to see a spill."""

import re
from pathlib import Path

import pytest

from tests import sass

ROOT = Path(__file__).parents[1]
# Of the tuned kernels, the most registers any has on any GPU, as recorded; threads per block and 65536
# registers a multiprocessor make these 2, 3, 4, 6, 3 and 4 blocks.
REGISTERS = {
    "implicit_gemm": 128,
    "tensor_cores": 168,
    "depthwise": 128,
    "direct": 80,
    "packs": 80,
    "welford": 64,
}

# Least share of FFMA or HMMA among the instructions of any kernel's main loop, as recorded. It ranks variants
# and shows what creeps into a loop; it is no speed.
PRODUCTS = {
    "implicit_gemm": {"sm_80": 0.88, "sm_90": 0.9, "sm_120": 0.9},
    "tensor_cores": {"sm_80": 0.075, "sm_90": 0.07, "sm_120": 0.075},
    "depthwise": {"sm_80": 0.16, "sm_90": 0.155, "sm_120": 0.16},
    "direct": {"sm_80": 0.039, "sm_90": 0.036, "sm_120": 0.055},
}
disassembled = pytest.mark.skipif(
    sass.cuobjdump() is None or not list(ROOT.glob("build/cuda-*/*.o")),
    reason="built without nvcc, or nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm are not installed",
)


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


def objects():
    """(file, architecture, object file) of the tuned kernels in the last build."""
    for path in ROOT.glob("build/cuda-*/*.cu.o"):
        for arch in re.findall(r"\d+", path.parent.name):
            if (file := path.name.split(".")[-3]) in REGISTERS:
                yield file, f"sm_{arch}", path


@disassembled
def test_tuned_kernels_add_nothing_atomically_and_touch_no_local_memory():
    seen = set()
    for file, arch, path in objects():
        seen.add(file)
        found = set(re.findall(r" (?:ATOM|RED[.G]|LDL|STL)\S*", sass.text_of(path, arch)))
        assert not found, f"{file} for {arch} has {','.join(found)}"
    assert seen == set(REGISTERS)


@disassembled
def test_main_loops_are_as_recorded():
    seen = set()
    for file, arch, path in objects():
        for kernel in sass.kernels(path, arch, "") if file in PRODUCTS else ():
            if loop := kernel.main_loop():
                seen.add(file)
                share = sum(loop[m] for m in sass.MATH) / loop.total()
                assert share >= PRODUCTS[file].get(arch, 0), f"{kernel.name}, {arch}: {share:.3f}"
    assert seen == set(PRODUCTS)
