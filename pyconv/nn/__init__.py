"""Layers: torch.nn, with convolution, pooling and batch norm running on pyconv's kernels.

    import pyconv.nn as nn

    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))

Conv2d, ConvTranspose2d, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, AdaptiveMaxPool2d, MaxUnpool2d,
BatchNorm2d, SyncBatchNorm, the Lazy forms and `functional` are ours; every other public name of
torch.nn (Linear, ReLU, Module, init, utils, ...) is torch's own object. Our layers are subclasses
of torch's of the same name: same constructor, same initial weights for the same seed, same
state_dict, same repr. Each has one attribute more, `algorithm`: None lets the kernel list choose, a
name of pyconv.algorithms forces that kernel.

BatchNormReLU2d has no namesake in torch: batch norm, the sum with a shortcut and ReLU as one layer.
"""

# ruff: noqa: F403, I001
# Ours come before torch's for mypy, to which the first definition of a name counts, and after them
# for Python and every other checker, to which the last one does.
from pyconv.nn._ours import *
from torch.nn import *  # type: ignore[assignment,no-redef]
from pyconv.nn._ours import *
from pyconv.nn.batch_norm_relu import BatchNormReLU2d as BatchNormReLU2d
