"""
Error messages
==============

What each says, why, and what to do. Every message here was just raised by the lines below it.
"""

import sys
from pathlib import Path
from unittest import mock

import torch

import pyconv
from pyconv import backends, data, inspect, lab, models, nn, ops, train


def said(call, *arguments, **named):
    """What a call says that cannot be; it is printed and returned."""
    try:
        call(*arguments, **named)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return str(error)
    raise AssertionError("it was possible")


x = torch.randn(2, 3, 12, 12)
w = torch.randn(8, 3, 3, 3)

# %%
# "Kernel size can't be greater than actual input size"
# -----------------------------------------------------
# The image has become smaller than the window. The shape doctor says in which layer, and what would do.

shrinking = nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(3, 8, 5))
assert "Kernel size can't be greater than actual input size" in said(shrinking, x)
assert "padding=1 would work" in said(inspect.check_shapes, shrinking, x)
assert nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(3, 8, 5, padding=1))(x).shape == (2, 8, 1, 1)

# %%
# "mat1 and mat2 shapes cannot be multiplied"
# -------------------------------------------
# torch's, of a linear layer behind convolutions, for images of another size than it was made for. The shape doctor
# has both cures. A LazyLinear takes what it is given first; an adaptive pooling before it gives one size for all.

lenet = models.LeNet5()
assert "mat1 and mat2 shapes cannot be multiplied" in said(lenet, torch.randn(1, 1, 32, 32))
assert "in_features=576 would fit" in said(inspect.check_shapes, lenet, torch.randn(1, 1, 32, 32))
free = nn.Sequential(nn.Conv2d(1, 16, 5), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(400, 10))
assert free(torch.randn(1, 1, 32, 32)).shape == free(torch.randn(1, 1, 28, 28)).shape

# %%
# "expected input to have 3 channels, but got 1 channels instead"
# ---------------------------------------------------------------
# A grey image for a network that wants colours: repeat it, or let the first layer take one channel.

grey = torch.randn(2, 1, 12, 12)
assert "to have 3 channels, but got 1 channels instead" in said(ops.conv2d, grey, w)
assert ops.conv2d(grey.expand(-1, 3, -1, -1), w).shape == (2, 8, 10, 10)

# %%
# "but got 12 channels instead"
# -----------------------------
# The number of rows where that of channels should be: the image is (H, W, C), as files have it.

picture = torch.randn(12, 12, 3)
assert "got 12 channels instead" in said(ops.conv2d, picture, w)
assert ops.conv2d(picture.permute(2, 0, 1), w).shape == (8, 10, 10)

# %%
# "input must be 4-D (N, C, H, W) or 3-D (C, H, W), got 2-D"
# ----------------------------------------------------------
# An image without its channel, or one that was flattened too early.

assert "got 2-D of shape (12, 12)" in said(ops.conv2d, grey[0, 0], w[:, :1])
assert ops.conv2d(grey[0, 0][None, None], w[:, :1]).shape == (1, 8, 10, 10)

# %%
# "weight must have input's dtype torch.float64, got torch.float32"
# -----------------------------------------------------------------
# numpy's numbers are float64. Nothing is converted silently; ``.float()`` does it.

image = torch.from_numpy(x.double().numpy())
assert "must have input's dtype torch.float64, got torch.float32" in said(ops.conv2d, image, w)
assert ops.conv2d(image.float(), w).dtype == torch.float32

# %%
# "input must be float64, float32, bfloat16 or float16, got torch.uint8"
# ----------------------------------------------------------------------
# Pixels as files have them, from 0 to 255.

pixels = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
assert "or float16, got torch.uint8" in said(ops.conv2d, pixels, w)
assert ops.conv2d(pixels.float() / 255, w).shape == (2, 8, 10, 10)

# %%
# 'padding="same" needs stride 1'
# -------------------------------
# Only with a stride of one can the output be as large as the input. Half the kernel, rounded down, comes near it.

assert 'padding="same" needs stride 1, got (2, 2)' in said(
    ops.conv2d, x, w, stride=2, padding="same"
)
assert ops.conv2d(x, w, stride=2, padding=1).shape == (2, 8, 6, 6)

# %%
# "weight's first dimension must be divisible by groups"
# ------------------------------------------------------
# Groups cut the output channels, too.

assert "must be divisible by groups" in said(ops.conv2d, x, torch.randn(8, 1, 3, 3), groups=3)
assert ops.conv2d(x, torch.randn(9, 1, 3, 3), groups=3).shape == (2, 9, 10, 10)

# %%
# "pad should be smaller than or equal to half of kernel size"
# ------------------------------------------------------------
# Of a pooling: with more, some windows would lie in the padding alone, and have no largest value.

assert "pad should be smaller than or equal to half of kernel size" in said(
    ops.max_pool2d, x, 2, padding=2
)
assert ops.max_pool2d(x, 5, padding=2).shape == (2, 3, 3, 3)

# %%
# "Expected more than 1 value per channel when training"
# ------------------------------------------------------
# Of a batch norm: one value has no variance. A larger batch, or evaluation mode.

norm, alone = nn.BatchNorm2d(8), torch.randn(1, 8, 1, 1)
assert "Expected more than 1 value per channel when training" in said(norm, alone)
assert norm.eval()(alone).shape == (1, 8, 1, 1)

# %%
# 'algorithm "depthwise_planes" cannot run fwd here'
# --------------------------------------------------
# A kernel that was asked for by name cannot do this shape, and says why. ``explain`` has the answers of all.

refused = said(ops.conv2d, x, w, algorithm="depthwise_planes")
assert "depthwise_planes" in refused
answers = {
    kernel.name: kernel.cannot for kernel in pyconv.explain(ops.conv2d, x, w).passes[0].candidates
}
assert answers["depthwise_planes"] in refused
able = [name for name, cannot in answers.items() if not cannot]
assert ops.conv2d(x, w, algorithm=able[0]).shape == (2, 8, 10, 10)

# %%
# "fuse: the model is in training mode"
# -------------------------------------
# Batch norm is folded into a convolution as two constants, which in training it is not.

model = models.build("simple_cnn_bn")
assert "call model.eval() first" in said(pyconv.fuse, model)
fused = pyconv.fuse(model.eval(), report=print)

# %%
# "FusedConv2d: a fused model is for inference"
# ---------------------------------------------
# Train the model that was fused, and fuse it again. For training there is ``pyconv.convert(model, fuse=True)``.

assert "fuse it again" in said(fused.train)

# %%
# "prepack: the model has no convolution of pyconv.nn"
# ----------------------------------------------------
# It has torch's.

torchs = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
assert "pyconv.fuse or pyconv.convert first" in said(pyconv.prepack, torchs)
pyconv.prepack(pyconv.convert(torchs, report=print))

# %%
# "Tensor-likes are not close"
# ----------------------------
# Two right answers that are rounded in another order. float64 says which is nearer, and how near they should be.

y = ops.conv2d(x, w, algorithm="winograd")
judge = torch.nn.functional.conv2d(x.double(), w.double())
assert "Tensor-likes are not close" in said(
    torch.testing.assert_close, y, judge.float(), rtol=0, atol=1e-8
)
torch.testing.assert_close(y, judge.float(), rtol=0, atol=1e-5 * float(judge.abs().max()))
backends.allow_winograd = False  # nearer still
assert pyconv.explain(ops.conv2d, x, w).passes[0].chosen != "winograd"
backends.allow_winograd = True

# %%
# "plots need matplotlib"
# -----------------------
# Numbers need nothing; figures do.

with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.pyplot": None}):
    assert "pip install 'pyconv[inspect]'" in said(inspect.schedule(20, lr=0.1).plot)

# %%
# "pyconv._C could not be loaded"
# -------------------------------
# A warning, and what explain says: the compiled half is missing or of another Python, and pyconv runs its plain
# PyTorch, slowly. ``python -m pyconv info`` has the reason; building it again is the cure. Here it is only hidden:

with mock.patch.multiple(
    "pyconv._native", lib=None, reason="pyconv._C could not be loaded: hidden"
):
    assert "there are no kernels to ask: pyconv._C" in said(pyconv.explain, ops.conv2d, x, w)

# %%
# "there is no layer 'conv9'"
# ---------------------------
# Names are those of ``named_modules``; the message has them all.

assert "there are conv1, act1" in said(inspect.show_filters, lenet, "conv9")

# %%
# "no data set is called 'cifar10'"
# ---------------------------------

assert "choose from mnist, fashion-mnist" in said(data.load, "cifar10")

# %%
# "--momentum has no effect with --schedule one-cycle"
# ----------------------------------------------------
# The schedule moves the momentum itself.

flags = {"schedule": "one-cycle", "momentum": 0.8}
assert "which moves the momentum itself" in said(train.resolve, flags)

# %%
# "lab.kernel: naive.cu has no kernel called 'main'"
# --------------------------------------------------
# Kernels stand at file scope, after ``__global__``; the message has those that were found.

naive = Path(lab.__file__).with_name("naive.cu")
assert "it has: naive" in said(lab.kernel, naive, "main")
