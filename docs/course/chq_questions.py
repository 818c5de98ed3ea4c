"""
10. Questions and answers
=========================

Each answer is a line that runs.
"""

import torch

import pyconv
from pyconv import backends, inspect, nn, ops

x = torch.randint(-4, 5, (2, 3, 12, 12)).float()  # whole numbers: sums are exact, == means it
w = torch.randint(-4, 5, (8, 3, 3, 3)).float()
y = ops.conv2d(x, w)

# %%
# Is this a convolution? Nothing is flipped.
# ------------------------------------------
# Mathematicians call it cross-correlation; their convolution is this one with the kernel turned around. To a network
# that learns its kernels it is the same.

signal, kernel = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([1.0, 0, -2])
flipped = ops.conv2d(signal.view(1, 1, 1, 5), kernel.flip(0).view(1, 1, 1, 3), padding=(0, 2))
assert flipped.flatten().tolist() == [1, 2, 1, 0, -1, -8, -10]  # as numpy.convolve

# %%
# How many parameters has a layer?
# --------------------------------
# OC * (IC / groups) * KH * KW weights, and OC biases.

assert (
    sum(p.numel() for p in nn.Conv2d(16, 32, (3, 5), groups=4).parameters()) == 32 * 4 * 3 * 5 + 32
)

# %%
# What padding keeps the size?
# ----------------------------
# Half of an odd kernel. An even one has no half: padding="same" adds the odd row at the end.

assert ops.conv2d(x, w, padding=1).shape[2:] == (12, 12)
assert ops.conv2d(x, w[..., :2, :2], padding="same").shape[2:] == (12, 12)

# %%
# If the image moves, does the result move?
# -----------------------------------------
# Yes, away from the border. With a stride of two, only if it moves by two.

assert torch.equal(ops.conv2d(x.roll(1, 3), w)[..., 1:], y[..., :-1])
strided = ops.conv2d(x, w, stride=2)
assert torch.equal(ops.conv2d(x.roll(2, 3), w, stride=2)[..., 1:], strided[..., :-1])
assert not torch.equal(ops.conv2d(x.roll(1, 3), w, stride=2)[..., 1:], strided[..., :-1])

# %%
# Why two 3 x 3 and not one 5 x 5?
# --------------------------------
# They see as much, with 18 weights a channel and not 25, and a ReLU can stand between them.

two = torch.nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3))
assert inspect.receptive_field(two, 12)["2"].size == (5, 5)

# %%
# Is a linear layer a convolution?
# --------------------------------
# One whose window is the whole image.

whole = torch.randint(-2, 3, (10, 3, 12, 12)).float()
assert torch.equal(ops.conv2d(x, whole)[:, :, 0, 0], x.flatten(1) @ whole.flatten(1).T)

# %%
# Where does the gradient of max pooling go?
# ------------------------------------------
# To the largest pixel of each window, the first of equal ones.

image = torch.tensor([[1.0, 3], [3, 2]]).view(1, 1, 2, 2).requires_grad_()
ops.max_pool2d(image, 2).backward()
assert image.grad.flatten().tolist() == [0, 1, 0, 0]

# %%
# Does a result depend on what else is in the batch? On threads?
# --------------------------------------------------------------
# No, to the last bit.

real = torch.randn(4, 8, 12, 12)
together = ops.conv2d(real, torch.ones(8, 8, 3, 3) / 7)
assert torch.equal(ops.conv2d(real[2:3], torch.ones(8, 8, 3, 3) / 7), together[2:3])
threads = torch.get_num_threads()
torch.set_num_threads(threads + 1)
assert torch.equal(ops.conv2d(real, torch.ones(8, 8, 3, 3) / 7), together)
torch.set_num_threads(threads)

# %%
# Why are results different in evaluation mode?
# ---------------------------------------------
# Batch norm uses the batch's own mean in training, and the running one afterwards.

norm = nn.BatchNorm2d(8)
assert norm(real + 5).mean().abs() < 1e-5
assert norm.eval()(real + 5).mean() > 1

# %%
# Which kernel ran?
# -----------------
# Ask; or force one.

layer = nn.Conv2d(64, 64, 3, padding=1)
print(pyconv.explain(layer, torch.randn(1, 64, 28, 28)))
layer.algorithm = "implicit_gemm"
assert inspect.summary(layer, torch.randn(1, 64, 28, 28)).rows[0].kernel == "implicit_gemm"

# %%
# Can I forbid Winograd?
# ----------------------
# It rounds differently from a plain sum. Without it:

layer.algorithm = None
backends.allow_winograd = False
assert pyconv.explain(layer, torch.randn(1, 64, 28, 28)).passes[0].chosen != "winograd"
backends.allow_winograd = True

# %%
# What does channels_last change?
# -------------------------------
# Where numbers lie in memory, and so which kernel is best; not the numbers.

last = ops.conv2d(x.to(memory_format=torch.channels_last), w)
assert last.stride(1) == 1
assert torch.equal(last, y)
