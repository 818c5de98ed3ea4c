"""LeNet-5.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86(11), 1998, section II.B. As taught in "Dive into Deep Learning",
section 7.6: 28x28 images padded by 2 stand for the paper's 32x32, every C3 map sees all six S2
maps, and a linear layer replaces the Gaussian output units.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ._layers import resolve


class LeNet5(torch.nn.Module):
    """Two convolutions and three dense layers, for (N, in_channels, 28, 28) images.

    61,706 parameters with one input channel and ten classes: conv1 156, conv2 2,416, fc1 48,120,
    fc2 10,164, fc3 850.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images.
        variant: "sigmoid" has sigmoid units and average pooling, as in 1998; "relu" has rectified
            units and max pooling, as everything since 2012.
        nn: the layer namespace; None is `pyconv.nn`, `torch.nn` gives the twin.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        variant: str = "sigmoid",
        nn: ModuleType | None = None,
    ) -> None:
        super().__init__()
        nn = resolve(nn)
        if variant not in ("sigmoid", "relu"):
            raise ValueError(f"LeNet5: variant must be 'sigmoid' or 'relu', got {variant!r}")
        activation = nn.Sigmoid if variant == "sigmoid" else nn.ReLU
        pool = nn.AvgPool2d if variant == "sigmoid" else nn.MaxPool2d

        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=2)
        self.act1 = activation()
        self.pool1 = pool(kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.act2 = activation()
        self.pool2 = pool(kernel_size=2, stride=2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.act3 = activation()
        self.fc2 = nn.Linear(120, 84)
        self.act4 = activation()
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        x = self.act1(self.conv1(x))  # (N, 6, 28, 28)
        x = self.pool1(x)  # (N, 6, 14, 14)
        x = self.act2(self.conv2(x))  # (N, 16, 10, 10)
        x = self.pool2(x)  # (N, 16, 5, 5)
        x = self.flatten(x)  # (N, 400)
        x = self.act3(self.fc1(x))  # (N, 120)
        x = self.act4(self.fc2(x))  # (N, 84)
        return self.fc3(x)
