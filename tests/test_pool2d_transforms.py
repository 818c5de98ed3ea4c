"""Pooling under torch's transforms: derivatives of every order, opcheck, torch.compile."""

import pytest
import torch
import torch.nn.functional as F

from pyconv import ops
from tests.helpers import LAYOUTS, random

ids = {"ids": str}
NHWC = LAYOUTS[1]


INDICES = torch.tensor([[[[1, 3], [15, 12]], [[0, 1], [2, 3]]]])
DERIVATIVES = {
    "max_pool2d": lambda x: ops.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max_pool2d, dilated": lambda x: ops.max_pool2d(x, 2, 1, 1, dilation=2),
    "max_pool2d of an image": lambda x: ops.max_pool2d(x[0], 2),
    "avg_pool2d": lambda x: ops.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "avg_pool2d, counting pixels": lambda x: ops.avg_pool2d(x, (3, 2), 1, 1, count_include_pad=False),
    "avg_pool2d, divided by -3": lambda x: ops.avg_pool2d(x, 2, divisor_override=-3),
    "adaptive_avg_pool2d": lambda x: ops.adaptive_avg_pool2d(x, (4, 9)),
    "adaptive_max_pool2d": lambda x: ops.adaptive_max_pool2d(x, (4, 3)),
    "max_unpool2d": lambda x: ops.max_unpool2d(x[:1, :, 1:3, 2:4], INDICES, 2),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", DERIVATIVES)
def test_gradcheck_to_second_order(case, layout):
    x = random(2, 2, 5, 6, dtype=torch.float64, layout=layout, grad=True)
    f = DERIVATIVES[case]
    assert torch.autograd.gradcheck(
        f, (x,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True)


def test_third_derivative_of_a_composition():
    x = random(1, 2, 4, 4, dtype=torch.float64, grad=True)

    def third(library):
        y = library.max_pool2d(x.pow(4), 3, 1, 1)
        y = library.avg_pool2d(y, 2).sum() + library.adaptive_max_pool2d(y, 3).square().sum()
        for _ in range(3):
            (d,) = torch.autograd.grad(y, x, create_graph=True)
            y = d.square().sum()
        return d

    torch.testing.assert_close(third(ops), third(F))


def test_indices_carry_no_gradient():
    y, indices = ops.max_pool2d(random(1, 1, 4, 4, grad=True), 2, return_indices=True)
    assert y.requires_grad
    assert not indices.requires_grad


@pytest.mark.parametrize("name", ["avg_pool2d", "adaptive_avg_pool2d"])
def test_an_average_saves_no_tensor(name):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        getattr(ops, name)(random(1, 2, 4, 4, grad=True), 2)
    assert not saved


RAW = {
    "max_pool2d": lambda x, y, i, last: (x, 3, 3, 2, 2, 1, 1, 1, 1, True, ""),
    "max_pool2d_bwd": lambda x, y, i, last: (y, i, 6, 7, 3, 3, 2, 2, 1, 1, 1, 1, last, ""),
    "max_pool2d_taps": lambda x, y, i, last: (x, 3, 3, 2, 2, 1, 1, 1, 1, True, ""),
    "max_pool2d_taps_bwd": lambda x, y, i, last: (
        y,
        torch.ops.pyconv.max_pool2d_taps(x, 3, 3, 2, 2, 1, 1, 1, 1, True, "")[1],
        6,
        7,
        3,
        3,
        2,
        2,
        1,
        1,
        last,
        "",
    ),
    "avg_pool2d": lambda x, y, i, last: (x, 3, 3, 2, 2, 1, 1, True, True, 0, ""),
    "avg_pool2d_bwd": lambda x, y, i, last: (y, 6, 7, 3, 3, 2, 2, 1, 1, True, 0, last, ""),
    "adaptive_max_pool2d": lambda x, y, i, last: (x, 4, 3, ""),
    "adaptive_max_pool2d_bwd": lambda x, y, i, last: (y, i, 6, 7, last, ""),
    "adaptive_avg_pool2d": lambda x, y, i, last: (x, 1, 1, ""),
    "adaptive_avg_pool2d_bwd": lambda x, y, i, last: (y, 6, 7, last, ""),
    "max_unpool2d": lambda x, y, i, last: (y, i, 6, 7, ""),
    "max_unpool2d_bwd": lambda x, y, i, last: (x, i, ""),
}


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RAW)
def test_opcheck(name, channels, layout):
    x = random(2, channels, 6, 7, layout=layout, grad=True)
    y, indices = torch.ops.pyconv.max_pool2d(x, 3, 3, 2, 2, 1, 1, 1, 1, True, "")
    y = y.detach().requires_grad_()
    torch.library.opcheck(getattr(torch.ops.pyconv, name), RAW[name](x, y, indices, layout == NHWC))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    def f(x):
        y, indices = ops.max_pool2d(x, 2, return_indices=True)
        u = ops.max_unpool2d(y, indices, 2, output_size=x.shape)
        a = ops.avg_pool2d(u, 3, 2, 1, ceil_mode=True)
        return (
            a.sin().sum()
            + (ops.adaptive_avg_pool2d(x[0], (2, 3)) * ops.adaptive_max_pool2d(x[0], (2, 3))).sum()
        )

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((2, 3, 8, 10), (4, 3, 12, 6)):
        x = random(*size, grad=True)
        (expected,) = torch.autograd.grad(f(x), x)
        torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)
