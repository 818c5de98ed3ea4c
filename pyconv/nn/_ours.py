"""What pyconv.nn has instead of torch.nn's."""

from pyconv.nn import functional
from pyconv.nn.batch_norm import BatchNorm2d, LazyBatchNorm2d, SyncBatchNorm
from pyconv.nn.conv import Conv2d, ConvTranspose2d, LazyConv2d, LazyConvTranspose2d
from pyconv.nn.pooling import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    MaxPool2d,
    MaxUnpool2d,
)

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "LazyBatchNorm2d",
    "LazyConv2d",
    "LazyConvTranspose2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "SyncBatchNorm",
    "functional",
]
