"""``python -m pyconv.lab``: the exercises with their reports, as Markdown. It is docs/lab.md."""

from __future__ import annotations

import subprocess

from pyconv._emulator import build
from pyconv.lab.exercises import EXERCISES

INTRODUCTION = '''# The lab: CUDA kernels of your own, without a GPU

A .cu file holds a kernel in plain CUDA. `pyconv.lab` compiles it in a second for the emulator of `docs/cuda.md`, runs
it on CPU tensors, compares what it wrote with what you expect, and says what it did to memory:

```python
import torch
from pathlib import Path
from pyconv import lab

Path("doubled.cu").write_text("""
__global__ void doubled(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}
""")
x, y = torch.randn(100), torch.empty(100)
print(lab.kernel("doubled.cu").check(x, y, 100, grid=4, block=32, expected=2 * x))
```

A report says for each order of the threads whether the values are right; then what is wrong with an access, by its
line; then what each line asked of memory. A request is what a warp asks at once; its cost is 32-byte sectors of global
memory, or passes over the banks of shared memory; `least` is what the same bytes could have cost, `excess` the ratio.
It is no clock: it shows what a kernel asks for, not how long a GPU takes to give it.

This page is what `python -m pyconv.lab` prints; a test sees to it. Then change a file, and see.
'''


def compiler() -> str:
    """The first line of what the compiler says of itself: counts are of its code."""
    command = [build.compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def page() -> str:
    """docs/lab.md as it should be."""
    texts = [exercise.text() for exercise in EXERCISES]
    return "\n".join([INTRODUCTION, *texts, f"Compiled by {compiler()}."])


if __name__ == "__main__":
    print(page())
