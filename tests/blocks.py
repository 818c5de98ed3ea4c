"""Twins of torchvision's blocks, and what the tests of fusing do with a model."""

import copy

import torch
from torch import nn

import pyconv
from pyconv.nn.fused import FusedConv2d


def settled(model):
    """In evaluation mode, with statistics and scales as after some training."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return model.eval()


def fused(model):
    """(fused model, its Report)."""
    reports = []
    return pyconv.fuse(model, report=reports.append), reports[0]


def check(model, *inputs, chains):
    """The same function in float64, with these chains fused; returns the report."""
    model = settled(model).double()
    inputs = [x.double() if isinstance(x, torch.Tensor) else x for x in inputs]
    with torch.no_grad():
        expected = model(*(copy.deepcopy(inputs)))
        fast, report = fused(model)
        torch.testing.assert_close(fast(*copy.deepcopy(inputs)), expected, rtol=1e-9, atol=1e-9)
    assert sorted(report.fused.values()) == sorted(chains)
    assert {k: v.stands_for for k, v in fast.named_modules() if type(v) is FusedConv2d} == (
        report.fused
    )
    assert not any(type(m) in (nn.Conv2d, nn.BatchNorm2d) for m in fast.modules())
    return report


def images(channels=3, size=8, n=2):
    return torch.randn(n, channels, size, size)


def conv(ni, nf, kernel=3, **kwargs):
    return nn.Conv2d(ni, nf, kernel, padding=kernel // 2, bias=False, **kwargs)


class BasicBlock(nn.Module):
    def __init__(self, ni, nf, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(ni, nf, stride=stride), nn.BatchNorm2d(nf)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(nf, nf), nn.BatchNorm2d(nf)
        self.downsample = None
        if stride != 1 or ni != nf:
            self.downsample = nn.Sequential(conv(ni, nf, 1, stride=stride), nn.BatchNorm2d(nf))

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, ni, width, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(ni, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, stride=stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or ni != 4 * width:
            self.downsample = nn.Sequential(
                conv(ni, 4 * width, 1, stride=stride), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ConvNorm(nn.Sequential):
    def __init__(self, ni, nf, kernel, activation=nn.ReLU6, **kwargs):
        layers = [conv(ni, nf, kernel, **kwargs), nn.BatchNorm2d(nf)]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


class InvertedResidual(nn.Module):
    def __init__(self, n, activation):
        super().__init__()
        self.conv = nn.Sequential(
            ConvNorm(n, 2 * n, 1, activation),
            ConvNorm(2 * n, 2 * n, 3, activation, groups=2 * n),
            conv(2 * n, n, 1),
            nn.BatchNorm2d(n),
        )

    def forward(self, x):
        return x + self.conv(x)
