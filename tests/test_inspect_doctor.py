"""The shape doctor: what it says would fit, fits."""

import math
import re

import pytest
import torch

import pyconv
import pyconv.nn as ours
from pyconv import inspect, models

# --- the shape doctor


def words_of(model, x):
    with pytest.raises(pyconv.ShapeError) as caught:
        inspect.check_shapes(model, x)
    assert caught.value.__cause__ is not None
    return str(caught.value)


@pytest.mark.parametrize("nn", [torch.nn, ours], ids=["torch", "pyconv"])
@pytest.mark.parametrize(
    ("kernel", "arguments", "size"),
    [
        (5, {}, (4, 9)),
        (3, {"stride": 2, "dilation": 3}, (9, 4)),
        ((1, 7), {"padding": (0, 1)}, (6, 3)),
        (7, {"padding": 1, "stride": 3}, (2, 2)),
    ],
)
def test_the_padding_it_names_works(nn, kernel, arguments, size):
    model = torch.nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, kernel, **arguments))
    x = torch.randn(1, 2, *size)
    said = words_of(model, x)
    assert said.startswith("1 (Conv2d ")
    axis = "HW".index(re.search(r"O([HW]) =", said)[1])
    formula, value = re.search(r"= floor\(\((\d.*)\) / (\d)\) \+ 1 = (-?\d+)", said).group(1, 3)
    stride = int(re.search(r"\) / (\d+)\) \+ 1 = ", said)[1])
    assert math.floor(eval(formula) / stride) + 1 == int(value) < 1
    padding, promised = map(
        int, re.search(r"padding=(\d+) would work: O[HW] = (\d+)", said).groups()
    )
    repaired = nn.Conv2d(2, 3, kernel, **{**arguments, "padding": padding})
    assert repaired(x).shape[2 + axis] == promised
    with pytest.raises(RuntimeError):
        nn.Conv2d(2, 3, kernel, **{**arguments, "padding": padding - 1})(x)
    if keep := re.search(r"padding=(\d+) would keep the size", said):
        kept = nn.Conv2d(2, 3, kernel, **{**arguments, "padding": int(keep[1])})
        assert kept(x).shape[2 + axis] == size[axis]


@pytest.mark.parametrize("nn", [torch.nn, ours], ids=["torch", "pyconv"])
def test_a_pooling_is_told_what_helps(nn):
    x = torch.randn(1, 2, 3, 3)
    assert "padding=1 would work: OH = 2" in words_of(nn.MaxPool2d(4, 1), x)
    said = words_of(nn.MaxPool2d(3, 1, dilation=4), torch.randn(1, 2, 6, 9))
    assert "the kernel must be 2 or smaller" in said
    assert nn.MaxPool2d(2, 1, dilation=4)(torch.randn(1, 2, 6, 9)).shape[2] == 2


@pytest.mark.parametrize("side", [24, 26, 32, 34])
def test_the_padding_for_a_linear_layer_works(side):
    model = models.LeNet5(nn=torch.nn)
    x = torch.randn(1, 1, side, side)
    said = words_of(model, x)
    given = re.search(r"takes 400 features and was given (\d+) = 16 x (\d+) x (\d+)", said)
    assert int(given[1]) == 16 * int(given[2]) * int(given[3])
    offers = re.findall(r"padding=(\d+) in (conv\d), for 16 x 5 x 5 = 400", said)
    assert offers
    for padding, name in offers:
        repaired = models.LeNet5(nn=torch.nn)
        getattr(repaired, name).padding = (int(padding),) * 2
        assert repaired(x).shape == (1, 10)


def test_channels_features_and_sums_are_named():
    conv = torch.nn.Conv2d(3, 4, 3)
    assert "it takes 3 channels and was given 1" in words_of(conv, torch.randn(1, 1, 8, 8))
    assert "permute(0, 3, 1, 2)" in words_of(conv, torch.randn(1, 8, 8, 3))
    norm = torch.nn.Sequential(conv, ours.BatchNorm2d(5))
    assert "1 (BatchNorm2d): it takes 5 channels and was given 4" in words_of(
        norm, torch.randn(1, 3, 8, 8)
    )
    forgot = torch.nn.Sequential(conv, torch.nn.Linear(144, 2))
    assert "A Flatten before it would give 4 x 6 x 6 = 144" in words_of(
        forgot, torch.randn(1, 3, 8, 8)
    )

    class Shortcut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3)

        def forward(self, x):
            return x + self.conv(x)

    assert "conv gave 1x3x6x6" in words_of(Shortcut(), torch.randn(1, 3, 8, 8))


def test_other_errors_pass_and_hooks_are_gone():
    model = models.LeNet5()

    def fails():
        with inspect.shape_doctor(model):
            model(torch.randn(1, 1, 28, 28))
            raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        fails()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
