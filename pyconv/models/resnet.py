"""Residual networks: ResNet-18 and the ResNet-20 for small images.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition",
arXiv:1512.03385, CVPR 2016: table 1 (ResNet-18), section 4.2 (ResNet-20), section 3.3 (shortcuts).
Initial weights: He et al., "Delving deep into rectifiers", arXiv:1502.01852, fan-out mode.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from pyconv.nn.batch_norm_relu import norm_relu

from ._layers import resolve


class PadShortcut(torch.nn.Module):
    """Option A of section 3.3: every second pixel, and zeros for the new channels; no parameters.

    (N, C, H, W) -> (N, C + extra, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return f"extra={self.extra}, stride={self.stride}"


class BasicBlock(torch.nn.Module):
    """relu(x' + bn(conv3x3(relu(bn(conv3x3(x)))))), x' the shortcut: figure 2 and section 3.3.

    The shortcut is the identity where the shape stays. Else it is, by `option`, "A": padding with
    zeros, or "B": a strided 1x1 convolution with batch norm, named `downsample` as torchvision
    names it.
    """

    fused_class: type  # what pyconv.convert(model, fuse=True) makes of it

    def __init__(self, ni: int, nf: int, stride: int, option: str, nn: ModuleType) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ni, nf, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(nf)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(nf, nf, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(nf)
        self.downsample: Module | None = None
        if stride != 1 or ni != nf:
            if option == "A":
                self.downsample = PadShortcut(nf - ni, stride)
            else:
                self.downsample = nn.Sequential(
                    nn.Conv2d(ni, nf, 1, stride=stride, bias=False), nn.BatchNorm2d(nf)
                )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class FusedBasicBlock(BasicBlock):
    """The same in two convolutions and two batch norms that add and clip where they store."""

    plain_class = BasicBlock

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = norm_relu(self.bn1, self.relu, self.conv1(x))
        return norm_relu(self.bn2, self.relu, self.conv2(x), shortcut)


BasicBlock.fused_class = FusedBasicBlock


class ResNet(torch.nn.Module):
    """A stem, stages of basic blocks, global average pooling, one linear layer.

    The first stage keeps the size of the image; each later one halves it in its first block.

    Args:
        channels: channels of each stage.
        blocks: blocks in each stage.
        stem: "imagenet" is a 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2;
            "small" is one 3x3 convolution of stride 1.
        option: the shortcut where the shape changes, see `BasicBlock`.
        num_classes: width of the output.
        in_channels: channels of the images.
        nn: the layer namespace; None is `pyconv.nn`.
    """

    fused_class: type  # as BasicBlock's

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        stem: str,
        option: str,
        num_classes: int,
        in_channels: int,
        nn: ModuleType | None = None,
    ) -> None:
        super().__init__()
        nn = resolve(nn)
        if stem not in ("imagenet", "small"):
            raise ValueError(f"ResNet: stem must be 'imagenet' or 'small', got {stem!r}")
        if option not in ("A", "B"):
            raise ValueError(f"ResNet: option must be 'A' or 'B', got {option!r}")
        ni = channels[0]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, ni, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, ni, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(ni)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages: list[str] = []
        for stage, (nf, count) in enumerate(zip(channels, blocks, strict=True), start=1):
            stride = 1 if stage == 1 else 2
            layers = [BasicBlock(ni, nf, stride, option, nn)]
            layers += [BasicBlock(nf, nf, 1, option, nn) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            self.stages.append(f"layer{stage}")
            ni = nf
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(ni, num_classes)

        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        return self._from_stem(self.relu(self.bn1(self.conv1(x))))

    def _from_stem(self, x: Tensor) -> Tensor:
        x = self.maxpool(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.flatten(self.avgpool(x)))


class FusedResNet(ResNet):
    """The same with the stem's batch norm and ReLU in one."""

    plain_class = ResNet

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        return self._from_stem(norm_relu(self.bn1, self.relu, self.conv1(x)))


ResNet.fused_class = FusedResNet


def resnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: str = "imagenet",
    nn: ModuleType | None = None,
) -> ResNet:
    """ResNet-18 with option B shortcuts; (N, 3, 224, 224) -> (N, 1000), stages at 56, 28, 14, 7.

    11,689,512 parameters; parameter names and shapes are torchvision's, so its weights load.
    With ``stem="small"``, for images of about 32x32: 11,173,962 parameters for ten classes.
    """
    return ResNet((64, 128, 256, 512), (2, 2, 2, 2), stem, "B", num_classes, in_channels, nn)


def resnet20(
    num_classes: int = 10,
    in_channels: int = 3,
    option: str = "A",
    nn: ModuleType | None = None,
) -> ResNet:
    """ResNet-20 of section 4.2 (n = 3), for images of about 32x32: stages of 16, 32, 64 channels.

    269,722 parameters with option A shortcuts, the paper's choice there; 272,474 with option B.
    """
    return ResNet((16, 32, 64), (3, 3, 3), "small", option, num_classes, in_channels, nn)
