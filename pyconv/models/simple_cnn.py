"""The plain stacks of stride-2 convolutions of the fastai course.

Source: J. Howard, S. Gugger, "Deep Learning for Coders with fastai and PyTorch", 2020, chapter 13:
"Our first convolutional neural network" (`simple_cnn_3v7`), "Improving training stability"
(`simple_cnn`) and its subsection "Batch normalization" (`simple_cnn(batch_norm=True)`).
"""

from __future__ import annotations

from types import ModuleType

from torch.nn import Module

from ._layers import resolve


def conv(
    ni: int,
    nf: int,
    kernel_size: int = 3,
    act: bool = True,
    batch_norm: bool = False,
    nn: ModuleType | None = None,
) -> Module:
    """A stride-2 convolution that halves the image, then ReLU, then batch norm, each if wanted.

    The chapter's order: batch norm after the ReLU, and also behind the last convolution.
    """
    nn = resolve(nn)
    layers = [nn.Conv2d(ni, nf, kernel_size, stride=2, padding=kernel_size // 2)]
    if act:
        layers.append(nn.ReLU())
    if batch_norm:
        layers.append(nn.BatchNorm2d(nf))
    return nn.Sequential(*layers)


def simple_cnn_3v7(
    num_classes: int = 2, in_channels: int = 1, nn: ModuleType | None = None
) -> Module:
    """Five 3x3 convolutions that tell threes from sevens: (N, 1, 28, 28) -> (N, 2).

    6,722 parameters: 40 + 296 + 1,168 + 4,640 + 578.
    """
    nn = resolve(nn)
    return nn.Sequential(
        conv(in_channels, 4, nn=nn),  # (N, 4, 14, 14)
        conv(4, 8, nn=nn),  # (N, 8, 7, 7)
        conv(8, 16, nn=nn),  # (N, 16, 4, 4)
        conv(16, 32, nn=nn),  # (N, 32, 2, 2)
        conv(32, num_classes, act=False, nn=nn),  # (N, 2, 1, 1)
        nn.Flatten(),
    )


def simple_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    batch_norm: bool = False,
    nn: ModuleType | None = None,
) -> Module:
    """Five convolutions for ten digits, the first 5x5: (N, 1, 28, 28) -> (N, 10).

    30,282 parameters: 208 + 1,168 + 4,640 + 18,496 + 5,770; batch norm adds 260, 2 per channel.
    """
    nn = resolve(nn)
    return nn.Sequential(
        conv(in_channels, 8, kernel_size=5, batch_norm=batch_norm, nn=nn),  # (N, 8, 14, 14)
        conv(8, 16, batch_norm=batch_norm, nn=nn),  # (N, 16, 7, 7)
        conv(16, 32, batch_norm=batch_norm, nn=nn),  # (N, 32, 4, 4)
        conv(32, 64, batch_norm=batch_norm, nn=nn),  # (N, 64, 2, 2)
        conv(64, num_classes, act=False, batch_norm=batch_norm, nn=nn),  # (N, 10, 1, 1)
        nn.Flatten(),
    )
