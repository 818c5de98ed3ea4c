"""pyconv.fuse: the same function in fewer layers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyconv.nn as ours
from pyconv import models, ops
from tests.blocks import BasicBlock, Bottleneck, InvertedResidual, check, images

ids = {"ids": str}


def test_basic_blocks():
    blocks = nn.Sequential(BasicBlock(3, 8), BasicBlock(8, 8), BasicBlock(8, 16, 2))
    inner = ["conv1 + bn1 + relu", "conv2 + bn2 + add + relu"]
    report = check(blocks, images(), chains=[*inner * 3, *["0 + 1"] * 2])
    assert report.left == {}
    assert "2.conv2_bn2_add_relu" in report.fused


def test_bottlenecks():
    blocks = nn.Sequential(Bottleneck(8, 4), Bottleneck(16, 4), Bottleneck(16, 4, 2))
    inner = ["conv1 + bn1 + relu", "conv2 + bn2 + relu", "conv3 + bn3 + add + relu"]
    report = check(blocks, images(8), chains=[*inner * 3, *["0 + 1"] * 2])
    assert report.left == {}


def test_inverted_residuals_open_the_sequential_that_is_added():
    check(InvertedResidual(4, nn.ReLU), images(4), chains=["0 + 1 + 2", "0 + 1 + 2", "2 + 3 + add"])
    chains = ["0 + 1 + 2", "0 + 1 + 2", "2 + 3 + add"]
    check(InvertedResidual(4, nn.ReLU6), images(4), chains=chains)
    check(InvertedResidual(4, partial(nn.Hardtanh, 0.0, 0.2)), images(4), chains=chains)
    check(InvertedResidual(4, nn.Hardtanh), images(4), chains=["0 + 1", "0 + 1", "2 + 3 + add"])


@pytest.mark.parametrize("namespace", [nn, ours], ids=["torch", "pyconv"])
@pytest.mark.parametrize(
    ("name", "image", "chains"),
    [
        ("lenet5", (1, 28, 28), []),
        ("lenet5_relu", (1, 28, 28), ["conv1 + act1", "conv2 + act2"]),
        ("simple_cnn", (1, 28, 28), ["0 + 1"] * 4),
        ("simple_cnn_bn", (1, 28, 28), ["0 + 1"] * 5),
        (
            "resnet20",
            (3, 32, 32),
            ["conv1 + bn1 + relu"] * 10 + ["conv2 + bn2 + add + relu"] * 9,
        ),
        (
            "resnet18",
            (3, 64, 64),
            ["conv1 + bn1 + relu"] * 9 + ["conv2 + bn2 + add + relu"] * 8 + ["0 + 1"] * 3,
        ),
    ],
)
def test_our_models(name, image, chains, namespace):
    report = check(models.build(name, nn=namespace), torch.randn(2, *image), chains=chains)
    assert len(report.left) == (4 if name == "simple_cnn_bn" else 0)  # norms behind their ReLU


# --- what is a chain


class Forward(nn.Module):
    """Two convolutions, a batch norm, a ReLU, a parameter, and any forward."""

    def __init__(self, forward, n=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(n, n, 3, padding=1), nn.Conv2d(n, n, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(n), nn.ReLU(inplace=True)
        self.shift = nn.Parameter(torch.randn(n, 1, 1))
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def in_place_between(m, x):
    h = torch.tanh(x)
    y = m.a(h)
    h.relu_()
    return y + h


def alias_of_the_sum(m, x):
    h = torch.tanh(x)
    alias = h
    h += m.norm(m.a(x))
    return m.relu(h) * alias


def module_in_place_between(m, x):
    h = torch.tanh(x)
    y = m.a(h)
    m.relu(h)
    return y + h


def alias_in_place_between(m, x):
    h = torch.tanh(x)
    alias = h[:, :2]
    y = m.a(h)
    alias.mul_(2)
    return y + h


def item_written_between(m, x):
    h = torch.tanh(x)
    y = m.a(h)
    h[:, 0] = 1
    return y + h


def shortcut_written(m, x):
    h = torch.tanh(x)
    h += m.norm(m.a(x))
    return m.relu(h) * h


def later_shortcut(m, x):
    y = m.norm(m.a(x))
    return torch.relu(y + torch.sigmoid(m.b(x)))


@pytest.mark.parametrize(
    ("forward", "chains"),
    [
        (lambda m, x: F.relu(m.norm(m.a(x))), ["a + norm + relu"]),
        (lambda m, x: m.norm(m.a(x)).relu(), ["a + norm + relu"]),
        (lambda m, x: m.a(x).relu_(), ["a + relu"]),
        (lambda m, x: F.relu(m.a(x), inplace=True), ["a + relu"]),
        (lambda m, x: torch.add(m.a(x), x), ["a + add"]),
        (lambda m, x: x.add(m.a(x)).relu(), ["a + add + relu"]),
        (lambda m, x: m.a(x).add_(x), ["a + add"]),
        (lambda m, x: m.a(x) + m.b(x), ["a + add"]),
        (
            lambda m, x: m.relu(m.b(m.relu(m.norm(m.a(x)))) + x),
            ["a + norm + relu", "b + add + relu"],
        ),
        (later_shortcut, ["a + norm + add + relu"]),
        # each layer of a chain is read by the next alone
        (lambda m, x: (y := m.a(x)) * m.norm(y), []),
        (lambda m, x: (y := m.norm(m.a(x))) * y.relu(), ["a + norm"]),
        (lambda m, x: (m.a(x), m.norm(x)), []),
        (lambda m, x: (y := m.a(x)) + y, []),
        # other orders
        (lambda m, x: m.norm(m.relu(m.a(x))), ["a + relu"]),
        (lambda m, x: m.a(m.relu(m.norm(x))), []),
        (lambda m, x: m.relu(m.a(x)) + x, ["a + relu"]),
        (lambda m, x: m.norm(m.a(x) + x), ["a + add"]),
        # not the sum it looks like
        (lambda m, x: m.a(x) + 1, []),
        (lambda m, x: torch.add(m.a(x), x, alpha=2), []),
        (lambda m, x: m.a(x) - x, []),
        (lambda m, x: F.relu6(m.a(x)), ["a + relu"]),
        (lambda m, x: F.hardtanh(m.a(x)), []),
        # another shape or dtype: added apart, as torch would
        (lambda m, x: m.relu(m.a(x) + m.shift), ["a + add + relu"]),
        (lambda m, x: m.relu(m.a(x[:1]) + x), ["a + add + relu"]),
        (lambda m, x: m.a(x) + x.float(), ["a + add"]),
        # one convolution twice
        (lambda m, x: m.relu(m.a(m.norm(m.a(x)))), ["a + norm", "a + relu"]),
        (lambda m, x: m.relu(m.a(m.relu(m.a(x)))), ["a + relu", "a + relu"]),
        # what a convolution reads may not be written before it runs
        (in_place_between, []),
        (module_in_place_between, []),
        (alias_in_place_between, []),
        (item_written_between, []),
        (shortcut_written, ["a + norm"]),
        (alias_of_the_sum, ["a + norm"]),
    ],
)
def test_chains(forward, chains):
    report = check(Forward(forward), images(4), chains=chains)
    allowed = "cannot be traced" if forward is item_written_between else "does not follow"
    assert all(allowed in why for name, why in report.left.items() if name != "norm")


def test_functions_of_pyconv_are_followed():
    def forward(m, x):
        return ops.max_pool2d(F.relu(m.a(ours.functional.avg_pool2d(x, 2))), 2)

    check(Forward(forward), images(4), chains=["a + relu"])


@pytest.mark.parametrize(
    "arguments",
    [
        dict(bias=False),
        dict(stride=2, dilation=2),
        dict(groups=2, padding="same"),
        dict(padding="valid"),
        dict(padding=(2, 1), padding_mode="reflect"),
        dict(padding="same", padding_mode="circular"),
    ],
    **ids,
)
@pytest.mark.parametrize("norm", [dict(), dict(affine=False), dict(eps=0.1)], **ids)
def test_arguments_of_the_layers(arguments, norm):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, **arguments), nn.BatchNorm2d(6, **norm), nn.ReLU())
    check(model, images(4), chains=["0 + 1 + 2"])


def test_sync_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
    check(model, images(), chains=["0 + 1"])
