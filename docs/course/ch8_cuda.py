"""
8. From a naive CUDA kernel to tensor cores
===========================================

The same sum on a GPU, without one: pyconv's emulator runs CUDA kernels on the CPU, thread by thread, and counts what
they ask of memory. It says where a kernel is wrong and what it asks for, and nothing about how long a GPU would take.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pyconv
from pyconv import lab, ops

folder = Path(lab.__file__).parent
torch.manual_seed(0)
x, w = torch.randint(-4, 5, (16, 34, 34)).float(), torch.randint(-4, 5, (64, 16, 3, 3)).float()
# (64, 32, 32); whole numbers, so that every order of a sum gives the same, but for Winograd's fractions
right = ops.conv2d(x[None], w, algorithm="reference")[0]
products = right.numel() * 16 * 9


def asked(report):
    """Bytes of global memory, and passes over shared memory, for each multiply-add."""
    sectors = sum(t.cost for t in report.traffic if t.memory == "global" and t.access == "read")
    passes = sum(t.cost for t in report.traffic if t.memory == "shared" and t.access == "read")
    return 32 * sectors / products, passes / products


# %%
# One thread for each output
# --------------------------
# A GPU runs thousands of threads, in warps of 32 that do the same at the same time. The formula as it stands: a
# thread has one output to itself, and loops over its window.

print((folder / "naive.cu").read_text())

# %%
# ``lab.kernel`` compiles such a file for the emulator, and ``run`` calls it as ``naive<<<grid, block>>>`` would.
# With ``check=True`` every access is watched.

y = torch.full_like(right, torch.nan)
naive = lab.kernel(folder / "naive.cu").run(
    x, w, y, 16, 34, 34, 3, grid=(1, 8, 64), block=(32, 4), check=True
)
assert torch.equal(y, right)
print(naive)

# %%
# It is right, and no line has far more than its least: the 32 threads of a warp read 32 neighbours, which lie in four
# or five sectors of 32 bytes. But for every two numbers read there is one multiply-add:

bytes_naive, _ = asked(naive)
print(f"{bytes_naive:.2f} bytes of global memory for each multiply-add")
assert naive.errors == []
assert bytes_naive > 4

# %%
# Shared memory, and a race
# -------------------------
# The threads of a block can put what they all need into shared memory, which is small and near. Then they must wait
# for each other twice: until the tile is there, and before it is overwritten.

print((folder / "tiled.cu").read_text())

# %%
# The last argument leaves the second wait out. What comes of it depends on which threads are faster. A GPU decides
# that differently in every run; the emulator does what it is told, and here are three orders of the same threads.

tiled = lab.kernel(folder / "tiled.cu")
few, filters = x[:2].contiguous(), w[:1, :2].contiguous()  # two channels in, one out
one = ops.conv2d(few[None], filters, algorithm="reference")[0]  # (1, 32, 32)
call = dict(grid=(2, 2, 1), block=(16, 16))
_, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
for ax, order, barrier in zip(
    axes, ("ascending", "descending", "random", "random"), (0, 0, 0, 1), strict=True
):
    y = torch.full_like(one, torch.nan)
    tiled.run(few, filters, y, 2, 34, 34, barrier, order=order, **call)
    off = y[0] - one[0]
    ax.imshow(off.numpy(), cmap="RdBu", vmin=-80, vmax=80)
    title = f"{order}, {'with' if barrier else 'without'} the barrier"
    ax.set_title(f"{title}\n{int((off != 0).sum())} of 1024 wrong", fontsize=9)
    ax.set(xticks=[], yticks=[])
    assert bool(off.any()) == (not barrier)
plt.suptitle("by how much the outputs are off", fontsize=10)
plt.show()

# %%
# Nobody should have to find that by luck. ``check`` keeps track of what stands between two accesses, and names the two
# lines, whichever the order:

result = tiled.check(few, filters, y, 2, 34, 34, 0, expected=one.double(), **call)
print(*result.report.errors, sep="\n")
assert {error.kind for error in result.report.errors} == {"race"}

# %%
# With the barrier it is right, and has read each pixel once a block where the naive kernel read it nine times:

y = torch.full_like(right, torch.nan)
report = tiled.run(
    x, w, y, 16, 34, 34, 1, grid=(2, 2, 64), block=(16, 16), check=True, order="random"
)
assert torch.equal(y, right)
assert report.errors == []
bytes_tiled, passes_tiled = asked(report)
print(f"{bytes_tiled:.2f} bytes of global memory, {passes_tiled:.2f} passes over shared memory")
assert bytes_tiled < bytes_naive

# %%
# Bank conflicts
# --------------
# Shared memory has 32 banks, each 4 bytes wide: address ``a`` lies in bank ``a / 4 % 32``. A warp is served in one
# pass if its threads meet 32 different banks, or the same word; else in as many as the busiest bank has words. Reading
# a column of a tile whose rows are 32 floats long is the worst there is. One unused float at the end of each row
# changes everything:

image, target = torch.randn(64, 96), torch.empty(96, 64)
turned = lab.kernel(folder / "coalescing.cu", "turned")
_, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
passes = {}
for ax, pitch in zip(axes, (32, 33), strict=True):
    report = turned.run(image, target, 64, 96, pitch, grid=(3, 2), block=(32, 8), check=True)
    assert torch.equal(target, image.T)
    (column,) = (t for t in report.traffic if t.memory == "shared" and t.access == "read")
    passes[pitch] = column.cost / column.requests
    met = torch.zeros(32, 32)
    met[torch.arange(32), torch.arange(32) * pitch % 32] = 1
    ax.imshow(met.numpy(), cmap="Blues")
    ax.set_title(f"rows of {pitch} floats; passes counted: {passes[pitch]:.0f}", fontsize=9)
    ax.set(xlabel="bank", ylabel="thread of the warp")
plt.show()
assert passes == {32: 32, 33: 1}

# %%
# Registers
# ---------
# Shared memory has a price, too: the tiled kernel still reads two numbers for each multiply-add, one of them there.
# The way out is that of chapter 7. Take convolution as a matrix product, and let each thread have 8 x 8 sums in its
# registers: of 16 numbers read it makes 64 products. That is ``implicit_gemm`` of ``csrc/cuda/conv2d``, here inside
# ``pyconv.cuda_emulator``, in which operators on CPU tensors run the CUDA kernels:

with pyconv.cuda_emulator(check=True) as report:
    y = ops.conv2d(x[None], w, algorithm="implicit_gemm")[0]
assert torch.equal(y, right)
assert report.errors == []
bytes_gemm, passes_gemm = asked(report)
print(report)

# %%
# Tensor cores
# ------------
# A tensor core multiplies small matrices, as an instruction of a whole warp: 16 x 16 times 16 x 8, of bfloat16, the
# sums in float32. Each of the 32 threads brings a part of both matrices and keeps a part of the result, in a pattern
# that is the machine's. Here A is the weights of one tap, B the pixels it meets, and D the sums of 16 output channels
# at 8 pixels:

source = """
using pyconv::bf16;
using pyconv::cuda::multiply_add;

static __device__ uint32_t two(const bf16* p) { return *reinterpret_cast<const uint32_t*>(p); }

// x (IH, IW, 16) channels last, w (9, OC, 16) tap by tap, y (OC, OH*OW). A block is one warp.
__global__ void one_warp(const bf16* x, const bf16* w, float* y, int OC, int IW, int OW, int pixels) {
  const int row = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;  // of A and D; of B: column, and row
  const int oc = blockIdx.y * 16 + row, first = blockIdx.x * 8, p = first + row;
  float d[4] = {0, 0, 0, 0};
  for (int tap = 0; tap < 9; tap++) {
    const bf16* a0 = w + (tap * OC + oc) * 16 + pair;  // rows oc and oc + 8, terms pair and pair + 8
    const bf16* b0 = x + ((p / OW + tap / 3) * IW + p % OW + tap % 3) * 16 + pair;
    const uint32_t a[4] = {two(a0), two(a0 + 8 * 16), two(a0 + 8), two(a0 + 8 * 16 + 8)};
    const uint32_t b[2] = {two(b0), two(b0 + 8)};
    multiply_add(bf16(), d, a, b);
  }
  float* out = y + oc * pixels + first + pair;
  out[0] = d[0];
  out[1] = d[1];
  out[8 * pixels] = d[2];
  out[8 * pixels + 1] = d[3];
}
"""
pixels_last = (
    x.permute(1, 2, 0).contiguous().bfloat16()
)  # (34, 34, 16); whole numbers up to 256 are exact
by_tap = w.permute(2, 3, 0, 1).bfloat16().contiguous()  # (3, 3, 64, 16)
with tempfile.TemporaryDirectory() as work:
    path = Path(work, "one_warp.cu")
    path.write_text(source)
    sums = torch.empty(64, 32 * 32)
    report = lab.kernel(path).run(
        pixels_last, by_tap, sums, 64, 34, 32, 1024, grid=(128, 4), block=32, check=True
    )
assert torch.equal(sums.view_as(right), right)
assert report.errors == []
bytes_warp, _ = asked(report)
print(report)

# %%
# It is right, and asks global memory for everything. ``tensor_cores`` of pyconv has the rest as well: asynchronous
# copies, of which two steps are under way while a third is multiplied; chunks of 16 bytes in an order in which no bank
# is met twice; 64 x 128 sums a block. All of it is written in the words of ``csrc/cuda/vocabulary.h``.

with pyconv.cuda_emulator(check=True) as report:
    y = ops.conv2d(
        x[None].bfloat16().to(memory_format=torch.channels_last),
        w.bfloat16().to(memory_format=torch.channels_last),
        algorithm="tensor_cores",
    )[0]
assert torch.equal(y, right.bfloat16())  # rounded once, when stored
assert report.errors == []
bytes_cores, passes_cores = asked(report)

# %%
# What is asked for, step by step
# -------------------------------

steps = ["naive", "tiled", "implicit_gemm", "one_warp", "tensor_cores"]
of_global = [bytes_naive, bytes_tiled, bytes_gemm, bytes_warp, bytes_cores]
of_shared = [0, passes_tiled, passes_gemm, 0, passes_cores]
_, axes = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained", sharey=True)
for ax, values, title in zip(
    axes,
    (of_global, of_shared),
    ("bytes of global memory read", "passes over shared memory"),
    strict=True,
):
    bars = ax.barh(steps, values, color=["tab:blue"] * 3 + ["tab:orange"] * 2)
    ax.bar_label(
        bars, [f"{value:.3f}" if value else "none" for value in values], padding=3, fontsize=8
    )
    ax.set_title(f"{title}, for each multiply-add", fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.15)
axes[0].invert_yaxis()
plt.show()
assert bytes_cores < bytes_gemm < bytes_tiled < bytes_naive

# %%
# The orange kernels read halves, two bytes each; the others floats. What a GPU makes of it is for a GPU to say:
# ``make gpu`` builds, tests and times all of this on one. How a kernel is written for pyconv, and which mistakes were
# planted to see that the tests find them, is on the page about CUDA; kernels to break and mend are in the lab.
