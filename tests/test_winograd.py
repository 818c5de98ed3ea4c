"""Winograd's algorithm: its error in figures, its switch, and the schedules no other test reaches."""

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import _native, ops
from tests.cases import CONV2D_WINOGRAD, conv2d
from tests.helpers import DTYPES, LAYOUTS, random
from tests.test_conv2d import check_against_float64, operands

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)
ids = {"ids": str}


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("case", CONV2D_WINOGRAD, **ids)
def test_every_instruction_set(case, dtype, layout, isa):
    check_against_float64(case, dtype, layout, "winograd")


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


# Errors in the l2 sense, relative to the result.
FAMILIES = {
    "CIFAR ResNet": ("mb4ic16ih32oc16kh3ph1", 1.6e-6),
    "ResNet 56": ("mb1ic64ih56oc64kh3ph1", 1.6e-6),
    "ResNet 28": ("mb1ic128ih28oc128kh3ph1", 1.6e-6),
    "ResNet 14": ("mb1ic256ih14oc256kh3ph1", 1.6e-6),
    "ResNet 7": ("mb2ic512ih7oc512kh3ph1", 1.6e-6),
    "VGG": ("mb1ic64ih112oc64kh3ph1", 1.6e-6),
    "DeepLab": ("mb1ic512ih33oc64kh3ph12dh12", 1.6e-6),
    "AlexNet": ("mb1ic48ih27oc128kh5ph2", 5e-6),
    "ResNet stem": ("mb2ic3ih112oc64kh7sh2ph3", 6e-6),
    "AlexNet stem": ("mb2ic3ih112oc64kh11sh4ph2", 1.6e-6),
    "SegNet": ("mb1ic64ih40oc64kh7ph3", 6e-6),
    "Inception": ("mb2ic128ih17oc128kh1kw7ph0pw3", 2e-6),
}


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("family", FAMILIES)
def test_error_against_float64(family, layout):
    text, limit = FAMILIES[family]
    case = conv2d(text)
    x, w = random(*case.x, layout=layout, grad=True), random(*case.w, layout=layout, grad=True)
    dy = random(*case.y, layout=layout)
    X, W = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    Y = F.conv2d(X, W, **case.arguments)
    judge = (Y.detach(), *torch.autograd.grad(Y, (X, W), dy.double()))

    def errors(algorithm):
        y = ops.conv2d(x, w, **case.arguments, algorithm=algorithm)
        got = (y.detach(), *torch.autograd.grad(y, (x, w), dy))
        return [error(a, e) for a, e in zip(got, judge)]

    for winograd, direct in zip(errors("winograd"), errors("implicit_gemm")):
        assert winograd < limit
        assert winograd < 16 * direct


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize(
    "text",
    [
        "mb9ic20ih30oc34kh3ph1",  # several blocks of tiles, weights transformed first
        "mb3ic70ih9oc130kh3ph1",  # one block, weights transformed where they are used
        "mb5ic20ih30oc34kh3ph3dh3",
        "mb2ic70ih9oc40kh7ph3",
        "mb3ic64ih200oc2kh5sh4ph2",  # images in groups of one
    ],
)
def test_bits_depend_on_neither_threads_nor_batch(text, layout):
    case = conv2d(text)
    x, w, b = operands(case, layout=layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = ops.conv2d(x, w, b, **case.arguments, algorithm="winograd")
        dy = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y, *torch.autograd.grad(y, (x, w, b), dy)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    for n in range(case.mb):
        alone = ops.conv2d(x[n : n + 1], w, b, **case.arguments, algorithm="winograd")
        assert torch.equal(results[0][0][n : n + 1], alone)


@pytest.fixture
def winograd_forbidden():
    before = pyconv.backends.allow_winograd
    pyconv.backends.allow_winograd = False
    yield
    pyconv.backends.allow_winograd = before


def test_the_switch(winograd_forbidden):
    x, w = random(1, 64, 28, 28), random(64, 64, 3, 3)
    assert pyconv.backends.allow_winograd is False
    forbidden = ops.conv2d(x, w)
    assert torch.equal(forbidden, ops.conv2d(x, w, algorithm="implicit_gemm"))
    with pytest.raises(
        ValueError, match=r"cannot run fwd here: pyconv\.backends\.allow_winograd is False"
    ):
        ops.conv2d(x, w, algorithm="winograd")
    pyconv.backends.allow_winograd = True
    assert torch.equal(ops.conv2d(x, w), ops.conv2d(x, w, algorithm="winograd"))
    assert not torch.equal(ops.conv2d(x, w), forbidden)


def test_the_switch_takes_a_bool():
    with pytest.raises(TypeError, match="allow_winograd must be True or False, got 1"):
        pyconv.backends.allow_winograd = 1


@pytest.mark.parametrize(
    "text", ["ic16ih9oc16kh6", "ic16ih9oc16kh1", "ic16ih9oc16kh3sh2dh2", "ic16ih9oc16kh2sh2"]
)
def test_other_windows_are_refused(text):
    case = conv2d(text)
    with pytest.raises(
        ValueError,
        match=r"needs 1 to 5 or 7 taps a stride along each axis.*, got \dx\d with stride",
    ):
        ops.conv2d(*operands(case), **case.arguments, algorithm="winograd")
