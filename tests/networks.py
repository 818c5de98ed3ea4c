"""A small network with every kind of layer, for the tests of what surrounds the operators."""

import torch
from torch import nn

import pyconv.nn as ours


def network(namespace=ours, dtype=torch.float64, groups=2):
    """(N, 2, 8, 8) -> (N, 3); the same weights for both namespaces."""
    torch.manual_seed(0)
    return nn.Sequential(
        namespace.Conv2d(2, 4, 3, padding=1, dtype=dtype),
        namespace.BatchNorm2d(4, dtype=dtype),
        nn.ReLU(),
        namespace.MaxPool2d(2),
        namespace.ConvTranspose2d(4, 6, 2, stride=2, groups=groups, dtype=dtype),
        namespace.AvgPool2d(3, stride=2, padding=1),
        namespace.Conv2d(6, 4, 3, groups=groups, bias=False, dtype=dtype),
        namespace.AdaptiveMaxPool2d(2),
        namespace.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(8, 3, dtype=dtype),
    )


def images(n=3, dtype=torch.float64):
    return torch.randn(n, 2, 8, 8, dtype=dtype)
