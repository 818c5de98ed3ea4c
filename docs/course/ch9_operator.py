"""
9. Write your own operator
==========================

A sum over a window, from C++ loops to an operator with gradients of every order, in the parts that every operator of
pyconv has: kernels, binding, shape, gradient, test, benchmark. Everything is in this page, compiled when it runs.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from pyconv import ops
from pyconv._timing import alternate

# %%
# The operator
# ------------
# With a window of K x K and a stride S, and no padding:
#
# .. mathmpl::
#    :fontsize: 13
#
#    y_{n,c,oh,ow} = \sum_{kh,kw} x_{n,c,\; oh \cdot S + kh,\; ow \cdot S + kw}
#
# First in plain PyTorch, to be read and to be judged by. In pyconv this is a file of ``pyconv/reference``.


def reference(x, kernel, stride):
    return x.unfold(2, kernel, stride).unfold(3, kernel, stride).sum((-2, -1))


# %%
# The kernels
# -----------
# Raw pointers and one struct, nothing of torch: they could be tested without it. ``plain`` is the formula.
# ``separable`` has one idea more: rows are summed first, then windows of that row of sums, so that an output takes
# 2 K additions and not K x K. Neighbours in a row do not depend on each other, and the compiler makes vectors of them.
#
# The gradient gathers: each value of dx asks which windows it was in. The other way round, each window adding to all
# its pixels, several threads would write the same place. In pyconv these are files of ``csrc/cpu/<operator>``.

kernels = """
#include <algorithm>
#include <cstdint>
#include <vector>

struct Shape {
  int64_t planes, IH, IW, OH, OW, K, S;
};

// y[p,oh,ow] = sum over kh, kw of x[p,oh*S+kh,ow*S+kw], of one plane.
template <class T>
void plain(const Shape& s, const T* x, T* y) {
  for (int64_t oh = 0; oh < s.OH; oh++) {
    for (int64_t ow = 0; ow < s.OW; ow++) {
      T sum = 0;
      for (int64_t kh = 0; kh < s.K; kh++) {
        for (int64_t kw = 0; kw < s.K; kw++) sum += x[(oh * s.S + kh) * s.IW + ow * s.S + kw];
      }
      y[oh * s.OW + ow] = sum;
    }
  }
}

template <class T>
void separable(const Shape& s, const T* x, T* y) {
  std::vector<T> column(s.IW);  // sums over kh
  for (int64_t oh = 0; oh < s.OH; oh++) {
    std::fill(column.begin(), column.end(), T(0));
    for (int64_t kh = 0; kh < s.K; kh++) {
      const T* row = x + (oh * s.S + kh) * s.IW;
      for (int64_t iw = 0; iw < s.IW; iw++) column[iw] += row[iw];
    }
    T* out = y + oh * s.OW;
    std::fill(out, out + s.OW, T(0));
    for (int64_t kw = 0; kw < s.K; kw++) {
      for (int64_t ow = 0; ow < s.OW; ow++) out[ow] += column[ow * s.S + kw];
    }
  }
}

// The first and past-the-last window that pixel i of an axis is in.
inline int64_t first(int64_t i, const Shape& s) { return i < s.K ? 0 : (i - s.K) / s.S + 1; }
inline int64_t last(int64_t i, int64_t O, const Shape& s) { return std::min(O, i / s.S + 1); }

// dx[p,ih,iw] = sum of dy[p,oh,ow] over the windows that the pixel is in.
template <class T>
void bwd(const Shape& s, const T* dy, T* dx) {
  for (int64_t ih = 0; ih < s.IH; ih++) {
    for (int64_t iw = 0; iw < s.IW; iw++) {
      T sum = 0;
      for (int64_t oh = first(ih, s); oh < last(ih, s.OH, s); oh++) {
        for (int64_t ow = first(iw, s); ow < last(iw, s.OW, s); ow++) sum += dy[oh * s.OW + ow];
      }
      dx[ih * s.IW + iw] = sum;
    }
  }
}
"""

# %%
# The binding
# -----------
# From tensors to pointers, on torch's stable ABI: built once, it runs with later versions of torch. It guards memory,
# and no more: what a person should be told is said in Python, where it also holds for tensors without data. A plane
# has one owner, so that the result is the same for any number of threads. In pyconv: ``csrc/ops/<operator>.cpp``, and
# a line in ``csrc/bindings.cpp``.

binding = """
#include "kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
using Kernel = void (*)(const Shape&, const T*, T*);

template <class T>
void each_plane(Kernel<T> kernel, const Shape& s, const Tensor& from, Tensor& to, int64_t step, int64_t out) {
  const T* in = static_cast<const T*>(from.const_data_ptr());
  T* result = static_cast<T*>(to.mutable_data_ptr());
  torch::stable::parallel_for(0, s.planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) kernel(s, in + p * step, result + p * out);
  });
}

Shape shape_of(const Tensor& t, int64_t IH, int64_t IW, int64_t K, int64_t S) {
  const bool holds = t.dim() == 4 && K >= 1 && S >= 1 && IH >= K && IW >= K;
  if (!holds) throw std::invalid_argument("window_sum: impossible sizes");
  return {t.size(0) * t.size(1), IH, IW, (IH - K) / S + 1, (IW - K) / S + 1, K, S};
}

Tensor window_sum(const Tensor& x, int64_t K, int64_t S, std::string algorithm) {
  const Tensor dense = torch::stable::contiguous(x);
  const Shape s = shape_of(x, x.dim() == 4 ? x.size(2) : 0, x.dim() == 4 ? x.size(3) : 0, K, S);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1), s.OH, s.OW});
  const bool is_plain = algorithm == "plain";
  if (x.scalar_type() == ScalarType::Double) {
    each_plane<double>(is_plain ? plain<double> : separable<double>, s, dense, y, s.IH * s.IW, s.OH * s.OW);
  } else if (x.scalar_type() == ScalarType::Float) {
    each_plane<float>(is_plain ? plain<float> : separable<float>, s, dense, y, s.IH * s.IW, s.OH * s.OW);
  } else {
    throw std::invalid_argument("window_sum: dtype must be float64 or float32");
  }
  return y;
}

Tensor window_sum_bwd(const Tensor& dy, int64_t IH, int64_t IW, int64_t K, int64_t S) {
  const Tensor dense = torch::stable::contiguous(dy);
  const Shape s = shape_of(dy, IH, IW, K, S);
  if (dy.size(2) != s.OH || dy.size(3) != s.OW) throw std::invalid_argument("window_sum_bwd: dy has another size");
  Tensor dx = torch::stable::new_empty(dy, {dy.size(0), dy.size(1), IH, IW});
  if (dy.scalar_type() == ScalarType::Double) {
    each_plane<double>(bwd<double>, s, dense, dx, s.OH * s.OW, s.IH * s.IW);
  } else if (dy.scalar_type() == ScalarType::Float) {
    each_plane<float>(bwd<float>, s, dense, dx, s.OH * s.OW, s.IH * s.IW);
  } else {
    throw std::invalid_argument("window_sum_bwd: dtype must be float64 or float32");
  }
  return dx;
}

STABLE_TORCH_LIBRARY(course, m) {
  m.def("window_sum(Tensor x, int kernel, int stride, str algorithm) -> Tensor");
  m.def("window_sum_bwd(Tensor dy, SymInt ih, SymInt iw, int kernel, int stride) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(course, CPU, m) {
  m.impl("window_sum", TORCH_BOX(&window_sum));
  m.impl("window_sum_bwd", TORCH_BOX(&window_sum_bwd));
}
"""

work = Path(tempfile.mkdtemp())
(work / "kernels.h").write_text(kernels)
(work / "binding.cpp").write_text(binding)
root = Path(torch.__file__).parent
subprocess.run(
    ["c++", "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000",
     f"-I{root}/include", "binding.cpp", "-o", "window_sum.so", f"-L{root}/lib", "-ltorch_cpu"],
    cwd=work, check=True,
)  # fmt: skip
torch.ops.load_library(work / "window_sum.so")
shutil.rmtree(work)
print(torch.ops.course.window_sum(torch.ones(1, 1, 4, 4), 2, 2, "separable"))

# %%
# The shape
# ---------
# ``torch.compile`` and the meta device ask for sizes without computing. In pyconv: ``pyconv/_register/<operator>.py``.


@torch.library.register_fake("course::window_sum")
def _(x, kernel, stride, algorithm):
    oh, ow = ((size - kernel) // stride + 1 for size in x.shape[2:])
    return x.new_empty(*x.shape[:2], oh, ow)


@torch.library.register_fake("course::window_sum_bwd")
def _(dy, ih, iw, kernel, stride):
    return dy.new_empty(*dy.shape[:2], ih, iw)


# %%
# The gradient
# ------------
# A sum is linear, so it is a matrix, and its gradient is the transposed matrix (chapter 3). The gradient of that is
# the matrix again. Two formulas, each the other's, and derivatives of every order are there. Without the second one
# the operator would train, and its second derivatives would be an error, or worse.


def keep(ctx, inputs, output):
    x, ctx.kernel, ctx.stride, _ = inputs
    ctx.size = x.shape[2:]


def transposed(ctx, dy):
    return torch.ops.course.window_sum_bwd(dy, *ctx.size, ctx.kernel, ctx.stride), None, None, None


def keep_bwd(ctx, inputs, output):
    _, _, _, ctx.kernel, ctx.stride = inputs


def itself(ctx, ddx):
    ddy = torch.ops.course.window_sum(ddx, ctx.kernel, ctx.stride, "separable")
    return ddy, None, None, None, None


torch.library.register_autograd("course::window_sum", transposed, setup_context=keep)
torch.library.register_autograd("course::window_sum_bwd", itself, setup_context=keep_bwd)

# %%
# What a person calls
# -------------------
# It says what is wrong before anything is touched: the operator, the argument, what was given, what is allowed. In
# pyconv: ``pyconv/ops/<operator>.py``, and a layer in ``pyconv/nn``.


def window_sum(x, kernel, stride=1, algorithm="separable"):
    """Sums of windows: (N, C, IH, IW) -> (N, C, (IH - K) // S + 1, (IW - K) // S + 1)."""
    if x.dim() != 4:
        raise ValueError(f"window_sum: x must be (N, C, H, W), got shape {tuple(x.shape)}")
    if not 1 <= kernel <= min(x.shape[2:]):
        raise ValueError(
            f"window_sum: kernel must be from 1 to {min(x.shape[2:])}, the image's smaller side, got {kernel}"
        )
    if stride < 1:
        raise ValueError(f"window_sum: stride must be at least 1, got {stride}")
    if algorithm not in ("plain", "separable"):
        raise ValueError(f"window_sum: algorithm must be 'plain' or 'separable', got {algorithm!r}")
    return torch.ops.course.window_sum(x, kernel, stride, algorithm)


try:
    window_sum(torch.ones(1, 1, 4, 6), kernel=5)
except ValueError as error:
    said = str(error)
print(said)
assert "from 1 to 4" in said

# %%
# The test
# --------
# What can be wrong: an index, a border, a stride, a layout, an empty batch, a gradient. Whole numbers, so that sums
# are exact and ``equal`` means it; sizes one below, at and one above where windows end; every kernel, by name; a random
# gradient from above, for one of all ones would hide a transposed index; and derivatives against finite differences
# in float64. In pyconv: ``tests/test_<operator>.py``.

checked = 0
for size in (5, 6, 7, 8):
    for kernel in (1, 2, 3, 5):
        for stride in (1, 2, 3):
            for batch in (0, 1, 3):
                x = torch.randint(-9, 10, (batch, 2, size, size + 1)).float()
                wanted = reference(x.double(), kernel, stride)
                for given in (x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
                    for algorithm in ("plain", "separable"):
                        y = window_sum(given, kernel, stride, algorithm)
                        assert torch.equal(y.double(), wanted)
                        checked += 1
print(f"{checked} sums are exact")

x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
for kernel, stride in ((3, 1), (2, 2), (3, 2), (2, 3)):
    assert torch.autograd.gradcheck(window_sum, (x, kernel, stride))
    assert torch.autograd.gradgradcheck(window_sum, (x, kernel, stride))
torch.library.opcheck(torch.ops.course.window_sum, (x, 3, 2, "plain"))
torch.library.opcheck(
    torch.ops.course.window_sum_bwd,
    (torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True), 6, 7, 3, 2),
)

# %%
# A test must be able to fail. Here is a gradient that is turned around. A gradient of all ones from above, turned, is
# the same, and the mistake goes through; the random one of gradcheck finds it.


class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return window_sum(x, 3)

    @staticmethod
    def backward(ctx, dy):
        return torch.ops.course.window_sum_bwd(dy.flip(3), 6, 7, 3, 1)


of_ones = [torch.autograd.grad(y.sum(), x)[0] for y in (Turned.apply(x), window_sum(x, 3))]
assert torch.equal(*of_ones)
assert not torch.autograd.gradcheck(Turned.apply, (x,), raise_exception=False)

# %%
# What it is good for
# -------------------
# The mean square of each neighbourhood, by which to divide an image: contrast made equal everywhere. The gradient is
# torch's business, from here on.


def normalized(image, kernel):
    """image / root mean square of its neighbourhood, (N, C, H, W), smaller by kernel - 1."""
    energy = window_sum(image * image, kernel) / kernel**2
    edge = kernel // 2
    return image[:, :, edge:-edge, edge:-edge] / (energy + 1e-3).sqrt()


assert torch.autograd.gradcheck(lambda t: normalized(t, 3), (x,))

# %%
# The benchmark
# -------------
# Checked above, so it may be timed: in turns with its peers, in one process, medians. Its peers are average pooling
# without the division, torch's and pyconv's own.

image = torch.randn(8, 16, 64, 64)
sizes, names = (2, 3, 5, 9, 15), ("plain", "separable", "torch", "pyconv")
times = {name: [] for name in names}
for kernel in sizes:
    players = {
        "plain": lambda k=kernel: window_sum(image, k, 1, "plain"),
        "separable": lambda k=kernel: window_sum(image, k, 1, "separable"),
        "torch": lambda k=kernel: F.avg_pool2d(image, k, 1, divisor_override=1),
        "pyconv": lambda k=kernel: ops.avg_pool2d(image, k, 1, divisor_override=1),
    }
    wanted = reference(image.double(), kernel, 1)
    for name, call in players.items():
        assert (call().double() - wanted).abs().max() < 1e-5 * kernel**2, name
    for name, timing in alternate(players, seconds=0.04, rounds=3).items():
        times[name].append(timing.median * 1e6)
print("window   " + "".join(f"{f'{k} x {k}':>10}" for k in sizes))
for name in names:
    print(f"{name:<9}" + "".join(f"{t:>7.0f} us" for t in times[name]))

_, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name in names:
    ax.plot(sizes, times[name], "o-", label=name)
ax.set(
    xlabel="window",
    ylabel="microseconds",
    xscale="log",
    yscale="log",
    title="window sums of 8 x 16 images, 64 x 64",
)
ax.set_xticks(sizes, [f"{k} x {k}" for k in sizes])
ax.minorticks_off()
ax.legend(fontsize=8)
ax.grid(alpha=0.3)
plt.show()
assert times["separable"][-1] < times["plain"][-1]

# %%
# And then, in pyconv
# -------------------
# The parts go where each of them was said to go; ``CONTRIBUTING.md`` has the list, and the rules that tests see to:
# arrows between folders point down only, a kernel that is listed is tested, an error names the operator. A kernel
# that wins is written over ``vec<T>`` of ``csrc/cpu/simd.h``, once for every instruction set, and every constant in it
# names the measurement that set it.
