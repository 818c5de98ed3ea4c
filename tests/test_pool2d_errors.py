"""Pooling asked for what it cannot do: the sentences of people's mistakes and of the kernels' refusals."""

import pytest
import torch

from pyconv import ShapeError, _native, ops
from tests.helpers import LAYOUTS, random

ids = {"ids": str}
NHWC = LAYOUTS[1]


# --- the kernel list


@pytest.mark.skipif(_native.lib is None, reason=_native.reason)
def test_float32_has_a_kernel_for_each_layout():
    for name in ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"):
        assert _native.lib.algorithms[name][-1] == "reference"
        assert {"rows", "channels"} < set(_native.lib.algorithms[name])
    x = random(1, 2, 8, 8)
    with pytest.raises(
        ValueError, match='max_pool2d: algorithm "channels" cannot run fwd here: its lanes'
    ):
        ops.max_pool2d(x, 2, algorithm="channels")
    with pytest.raises(
        ValueError,
        match='avg_pool2d: algorithm "planes" cannot run fwd here: it computes in float32',
    ):
        ops.avg_pool2d(x.double(), 8, algorithm="planes")
    with pytest.raises(
        ValueError, match=r'no algorithm "fast".*channels, transposed, rows, reference'
    ):
        ops.max_pool2d(x, 2, algorithm="fast")


# --- mistakes


X, I = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.int64)
MISTAKES = [
    (
        lambda x, i: ops.max_pool2d(x, 0),
        r"max_pool2d: kernel_size must be at least 1, got \(0, 0\)",
    ),
    (
        lambda x, i: ops.max_pool2d(x, (2, 2, 2)),
        r"kernel_size must be an int or two ints, got \(2, 2, 2\)",
    ),
    (lambda x, i: ops.max_pool2d(x, 2, 0), r"max_pool2d: stride must be at least 1, got \(0, 0\)"),
    (
        lambda x, i: ops.max_pool2d(x, 2, dilation=(1, 0)),
        r"max_pool2d: dilation must be at least 1",
    ),
    (lambda x, i: ops.max_pool2d(x, 2, padding=-1), r"max_pool2d: padding must be at least 0"),
    (
        lambda x, i: ops.max_pool2d(x, 3, padding=2),
        r"equal to half of kernel size, got padding \(2, 2\)",
    ),
    (
        lambda x, i: ops.max_pool2d(x, 3, padding=2, dilation=2),
        r"got padding \(2, 2\) with kernel_size \(3, 3\)",
    ),
    (
        lambda x, i: ops.max_pool2d(x, (9, 2)),
        r"Output size is too small: the window reaches over \(9, 2\).*padded input is \(8, 8\)",
    ),
    (
        lambda x, i: ops.max_pool2d(x[:, :, :1], 2, 2, dilation=2, ceil_mode=True),
        "Output size is too small",
    ),
    (lambda x, i: ops.max_pool2d(x[0, 0], 2), r"max_pool2d: input must be 4-D .* got 2-D"),
    (lambda x, i: ops.max_pool2d(x[None], 2), r"max_pool2d: input must be 4-D .* got 5-D"),
    (lambda x, i: ops.max_pool2d(x[:, :0], 2), "max_pool2d: .* no empty channel"),
    (
        lambda x, i: ops.avg_pool2d(x, 2, divisor_override=0),
        "avg_pool2d: divisor_override must be not zero",
    ),
    (
        lambda x, i: ops.avg_pool2d(x, 2, padding=(0, 2)),
        r"avg_pool2d: pad should be .* got padding \(0, 2\)",
    ),
    (
        lambda x, i: ops.avg_pool2d(x[..., :0], 2),
        "avg_pool2d: .* no empty channel, height or width",
    ),
    (
        lambda x, i: ops.adaptive_avg_pool2d(x, (2, -1)),
        r"adaptive_avg_pool2d: output_size must be at least 0, got \(2, -1\)",
    ),
    (
        lambda x, i: ops.adaptive_avg_pool2d(x, (2,)),
        r"adaptive_avg_pool2d: output_size must be an int or two",
    ),
    (lambda x, i: ops.adaptive_max_pool2d(x[:, :0], 2), "adaptive_max_pool2d: .* no empty channel"),
    (
        lambda x, i: ops.max_unpool2d(x, i[:1], 2),
        r"max_unpool2d: indices must have input's shape \(2, 4, 8, 8\), got",
    ),
    (
        lambda x, i: ops.max_unpool2d(x, i.int(), 2),
        "max_unpool2d: indices must be int64, got torch.int32",
    ),
    (
        lambda x, i: ops.max_unpool2d(x, i, 2, output_size=(12, 16)),
        r"output_size must be 15 to 17 in height.*got \(12, 16\)",
    ),
    (
        lambda x, i: ops.max_unpool2d(x, i, 2, output_size=(3, 16, 16)),
        r"output_size must be None, \(OH, OW\) or",
    ),
    (
        lambda x, i: ops.max_unpool2d(x, i, 2, padding=9),
        r"max_unpool2d: the output would be \(-2, -2\)",
    ),
]


# The kernels refuse, not their stand-in; on the meta device the shapes alone are looked at.
@pytest.mark.parametrize("device", ["cpu", "meta"] if _native.lib else ["meta"])
@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_named(call, message, device):
    with pytest.raises(ShapeError, match=message):
        call(X.to(device), I.to(device))


@pytest.mark.skipif(_native.lib is None, reason=_native.reason)
def test_integers_are_refused():
    for pool in (ops.max_pool2d, ops.avg_pool2d, ops.adaptive_avg_pool2d, ops.adaptive_max_pool2d):
        with pytest.raises(
            ShapeError, match=r"^[a-z_]*pool2d: input must be float64, .*, got torch.int64"
        ):
            pool(I, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.max_pool2d(X.numpy(), 2),
        lambda: ops.max_pool2d(X, 2.5),
        lambda: ops.avg_pool2d(X, 2, divisor_override=2.5),
        lambda: ops.adaptive_avg_pool2d(X, None),
        lambda: ops.adaptive_max_pool2d(X, (2, "2")),
        lambda: ops.max_unpool2d(X, None, 2),
        lambda: ops.max_pool2d(X, 2, algorithm=3),
    ],
)
def test_wrong_types_are_type_errors(call):
    with pytest.raises(TypeError, match=r"_(un)?pool2d: .* must be "):
        call()


@pytest.mark.parametrize("bad", [-1, 256, 10**12])
def test_an_index_outside_the_plane_is_refused(bad):
    indices = I.clone()
    indices[1, 3, 7, 7] = bad
    with pytest.raises(ValueError, match="max_unpool2d: indices must lie in a plane of 16 x 16"):
        ops.max_unpool2d(X, indices, 2)


@pytest.mark.skipif(_native.lib is None, reason=_native.reason)
@pytest.mark.parametrize(
    "call",
    [
        lambda op: op.max_pool2d(X[0], 2, 2, 2, 2, 0, 0, 1, 1, False, ""),
        lambda op: op.max_pool2d(X, 2, 2, 0, 2, 0, 0, 1, 1, False, ""),
        lambda op: op.max_pool2d(X, 2, 2, 2, 2, 2, 0, 1, 1, False, ""),
        lambda op: op.max_pool2d(X, 9, 2, 2, 2, 0, 0, 1, 1, False, ""),
        lambda op: op.max_pool2d_bwd(X, I, 8, 8, 2, 2, 2, 2, 0, 0, 1, 1, False, ""),
        lambda op: op.max_pool2d_bwd(X, I[:1], 16, 16, 2, 2, 2, 2, 0, 0, 1, 1, False, ""),
        lambda op: op.max_pool2d_bwd(X, X, 16, 16, 2, 2, 2, 2, 0, 0, 1, 1, False, ""),
        lambda op: op.avg_pool2d_bwd(X, 9, 9, 2, 2, 2, 2, 0, 0, True, 0, False, ""),
        lambda op: op.adaptive_avg_pool2d(X, -1, 2, ""),
        lambda op: op.adaptive_avg_pool2d_bwd(X, 0, 8, False, ""),
        lambda op: op.max_unpool2d(X, I + 64, 8, 8, ""),
        lambda op: op.max_unpool2d_bwd(X, I - 2, ""),
        lambda op: op.max_unpool2d_bwd(X[:1], I, ""),
    ],
)
def test_raw_operators_guard_memory_themselves(call):
    with pytest.raises((ValueError, RuntimeError), match="pool2d"):
        call(torch.ops.pyconv)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_the_gradient_drops_an_index_outside_the_plane(layout):
    dy = random(1, 2, 4, 4, layout=layout)
    indices = torch.full((1, 2, 4, 4), 10**10).contiguous(memory_format=layout)
    if _native.lib:
        dx = torch.ops.pyconv.max_pool2d_bwd(
            dy, indices, 8, 8, 2, 2, 2, 2, 0, 0, 1, 1, layout == NHWC, ""
        )
        assert (dx == 0).all()
