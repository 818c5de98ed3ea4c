"""All gradients of a convolution in one call: what a backward pass runs when nobody differentiates it."""

import pytest
import torch
from torch.library import opcheck

from pyconv import _native, ops
from tests.helpers import DTYPES, LAYOUTS, assert_close, integers, random

pytestmark = pytest.mark.skipif(_native.lib is None, reason="the reference has three calls")
GEOMETRY = (2, 1, 0, 1, 1, 2, 2)  # sh, sw, ph, pw, dh, dw, groups


def bwd_bias(dy):
    window, last = (1, 1, 1, 1, 0, 0, 1, 1, 1), dy.stride(1) == 1
    return torch.ops.pyconv._conv2d_bwd(dy, None, None, *dy.shape[2:], *window, last, True, "")[2]


# Vectors have 2 to 16 lanes, a part of channels_last 8192 values.
SIZES = [(0, 3, 2, 2), (1, 1, 1, 1), (2, 1, 9, 7), (3, 6, 28, 28), (2, 7, 31, 33), (2, 15, 8, 8)]
SIZES += [(2, 16, 13, 13), (3, 17, 40, 40), (1, 64, 16, 8), (1, 64, 43, 3), (5, 130, 9, 9)]
SIZES += [(1, 9001, 1, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bias(size, dtype, layout, isa):
    """Of integers exactly, whatever the number of threads; of others to the rounding of a sum."""
    whole = integers(*size, dtype=torch.float64, layout=layout)
    expected = whole.sum((0, 2, 3)).to(dtype)
    broken = random(*size, dtype=dtype, layout=layout)
    sums = broken.double().sum((0, 2, 3))
    magnitude = broken.double().abs().sum((0, 2, 3))
    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(bwd_bias(whole.to(dtype)), expected)
        seen.append(bwd_bias(broken))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert_close(seen[0], sums, magnitude=magnitude, terms=size[0] * size[2] * size[3])


@pytest.mark.parametrize(
    "needs", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str
)
@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_as_one_by_one(layout, dy_layout, needs):
    """A backward pass of which derivatives are wanted makes three calls."""
    sizes = (3, 4, 9, 8), (6, 2, 3, 2), (6,)
    operands = [random(*size, layout=layout) for size in sizes]
    for operand, need in zip(operands, needs, strict=True):
        operand.requires_grad_(bool(need))
    y = ops.conv2d(*operands, stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2)
    dy = random(*y.shape, layout=dy_layout)
    wanted = [t for t in operands if t.requires_grad]
    together = torch.autograd.grad(y, wanted, dy, retain_graph=True)
    apart = torch.autograd.grad(y, wanted, dy, create_graph=True)
    for t, one, other in zip(wanted, together, apart, strict=True):
        assert one.shape == t.shape
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, w = random(3, 4, 9, 8, layout=layout), random(6, 2, 3, 2, layout=layout)
    dy = random(3, 6, 4, 8, layout=layout)
    last = layout == torch.channels_last
    for operands in ((x, w), (x, None), (None, w), (None, None)):
        arguments = (dy, *operands, 9, 8, 3, 2, *GEOMETRY, last, True, "")
        opcheck(torch.ops.pyconv._conv2d_bwd.default, arguments)
