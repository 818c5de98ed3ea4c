"""
3. Convolution as matrix multiplication
=======================================

A convolution is linear, so it is a matrix. That matrix is not how anybody computes it, but three ways to compute it are
ways to look at that matrix.
"""

import matplotlib.pyplot as plt
import torch

from pyconv import data, inspect, ops

three = data.load("mnist").train.images[12]  # (1, 28, 28)
top_edge = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]])

# %%
# The matrix itself
# -----------------
# Write a 3 x 3 image as nine numbers in a column. A 2 x 2 kernel makes four outputs of it, and each is a sum of some
# of the nine: four rows of a matrix. Each colour below is one weight; it stands once in every row. White is zero, for
# what a window does not see.

small = inspect.conv_as_matrix(torch.tensor([[1.0, 2], [3, 4]]), size=3)
small.plot()
plt.show()
assert small.matrix.shape == (4, 9)
assert (small.matrix != 0).sum() == 4 * 4

# %%
# A layer of fully connected units has a matrix of that size too, and may choose every entry. A convolution has few
# weights, tied, and mostly zeros: that is all the difference, and it is why it learns from few images. For one 3 x 3
# kernel on a digit:

digit = inspect.conv_as_matrix(top_edge, size=28)
rows, columns = digit.matrix.shape
print(f"{rows} x {columns} entries, {digit.zeros:.1%} zeros, 9 weights")
assert (rows, columns) == (676, 784)
assert (digit.tied >= 0).sum() == 676 * 9

# %%
# The proof: the product is the convolution.

by_matrix = digit @ three[None]
assert torch.allclose(by_matrix, ops.conv2d(three[None], top_edge[None, None]), atol=1e-5)
assert digit.proof() < 1e-12

# %%
# Stride, padding, dilation and groups change where the weights stand, and nothing else.

_, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
weight = torch.randn(2, 2, 3, 3)
for ax, options in zip(
    axes.flat, ({}, {"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 1, "groups": 2})
):
    groups = options.get("groups", 1)
    matrix = inspect.conv_as_matrix(weight[:, : 2 // groups], size=6, **options)
    assert matrix.proof() < 1e-12
    matrix.plot(ax)
    ax.set_title(", ".join(f"{k}={v}" for k, v in options.items()) or "plain", fontsize=9)
plt.show()

# %%
# Its transpose is the gradient
# -----------------------------
# If y = M x, then the gradient of a loss with respect to x is M' times the one with respect to y. So the backward pass
# of a convolution is the transposed matrix, and ``conv_transpose2d`` is called what it is called for that reason.

matrix = inspect.conv_as_matrix(weight, size=6, stride=2, padding=1)
x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
y = ops.conv2d(x, weight.double(), None, stride=2, padding=1)
upstream = torch.randn_like(y)
y.backward(upstream)
by_transpose = (upstream.flatten() @ matrix.matrix.double()).view_as(x)
assert torch.allclose(x.grad, by_transpose, atol=1e-12)
transposed = ops.conv_transpose2d(
    upstream, weight.double(), None, stride=2, padding=1, output_padding=1
)
assert torch.allclose(x.grad, transposed, atol=1e-12)

# %%
# im2col
# ------
# The other way round: leave the weights a small dense matrix, and write out the windows as columns. The image is then
# stored nine times, but the product is one that every library does fast.

windows = inspect.show_im2col(three, 3, padding=1, at=205)
plt.show()
assert windows.columns.shape == (9, 784)
product = top_edge.flatten() @ windows.columns
assert torch.allclose(
    product.view(28, 28), ops.conv2d(three[None], top_edge[None, None], padding=1)[0, 0], atol=1e-5
)

# %%
# ``implicit_gemm`` is that product without the copy: it reads the windows where they lie, through two tables of
# offsets. Some convolutions need no table at all: of 1 x 1, the image is the matrix.
#
# Winograd
# --------
# Fewer products. Two outputs of a kernel of three taps share four inputs; computed directly they take six products.
# F(2, 3) takes four: transform the inputs, transform the kernel, multiply, transform back.

at, g, bt = inspect.winograd_tiles(torch.zeros(4, 4), torch.zeros(3, 3), m=2).matrices
print("inputs", bt.int(), "kernel", g, "back", at.int(), sep="\n")
d, k = torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
four_products = (g @ k) * (bt @ d)
direct = torch.stack([(d[:3] * k).sum(), (d[1:] * k).sum()])
assert torch.allclose(at @ four_products, direct, atol=1e-12)

# %%
# In two directions it is 16 products instead of 36, and with tiles of 4 x 4 outputs, F(4, 3), 36 instead of 144. The
# tiles of the input overlap by two pixels.

tiles = inspect.show_winograd_tiles(three[0], top_edge, m=4, padding=1)
plt.show()
assert tiles.multiplications == (36, 144)
exact = ops.conv2d(three[None].double(), top_edge[None, None].double(), padding=1)[0, 0]
assert (tiles.output - exact).abs().max() < 1e-12

# %%
# It is not free: the transforms subtract numbers of similar size, and larger tiles round worse. In float32:

x, w = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
exact = ops.conv2d(x.double(), w.double(), padding=1)
errors = {}
for algorithm in ("implicit_gemm", "winograd"):
    y = ops.conv2d(x, w, padding=1, algorithm=algorithm)
    errors[algorithm] = float((y - exact).norm() / exact.norm())
    print(f"{algorithm:<14} {errors[algorithm]:.1e}")
assert errors["winograd"] < 1.6e-6

# %%
# The ladder
# ----------
# Every way that pyconv has to compute this convolution, from the seven loops of the formula, each with the one idea
# that it adds. Flops are the formula's; Winograd passes the roofline because it does fewer.

ladder = inspect.ladder("conv2d", "ic64ih28oc64kh3ph1", seconds=0.05)
print(ladder)
ladder.plot()
plt.show()
