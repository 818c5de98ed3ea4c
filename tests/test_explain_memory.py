"""explain of pooling and batch norm: the kernel it names runs, and bytes are counted from the shapes."""

from pathlib import Path

import pytest
import torch
from torch import nn

import pyconv
import pyconv.nn as ours
from pyconv import _native, ops
from tests.helpers import LAYOUTS

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)

LAYERS = {
    "max": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max dilated, indices": nn.MaxPool2d(2, 1, dilation=2, return_indices=True),
    "avg": nn.AvgPool2d((2, 3), padding=1, count_include_pad=False),
    "adaptive max": nn.AdaptiveMaxPool2d((3, 4)),
    "adaptive avg": nn.AdaptiveAvgPool2d(5),
    "global": nn.AdaptiveAvgPool2d(1),
    "norm": nn.BatchNorm2d(6),
    "norm in evaluation": nn.BatchNorm2d(6).eval(),
    "norm without parameters": nn.BatchNorm2d(6, affine=False, track_running_stats=False),
    "norm and relu": ours.BatchNormReLU2d(6),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_named_is_the_kernel_that_runs(name, layout):
    layer = LAYERS[name]
    x = torch.randn(2, 6, 9, 10).to(memory_format=layout)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    found = pyconv.explain(layer, x)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    assert found.y == tuple(y.shape)
    assert found.channels_last == (layout == torch.channels_last)
    op = found.op.removesuffix("_relu")
    for p in found.passes:
        assert [k.name for k in p.candidates] == pyconv.algorithms(op)
        assert p.chosen == next(k.name for k in p.candidates if not k.refuses)
        for k in p.candidates:
            assert not k.cannot or len(k.cannot.split()) > 3
            assert k.line > 0, k.where
            assert "(" in Path(k.source).read_text().splitlines()[k.line - 1]
        assert f"{p.name}: {p.chosen} runs" in str(found)
    call = lambda algorithm: getattr(ops, found.op)(x, **found.arguments, algorithm=algorithm)  # noqa: E731
    for k in found.passes[0].candidates:
        if k.cannot:
            with pytest.raises(ValueError, match="cannot run fwd here: ") as error:
                call(k.name)
            assert str(error.value).endswith(k.cannot)
    forced, free = call(found.passes[0].chosen), call(None)
    torch.testing.assert_close(forced, free, rtol=0, atol=0)


def test_bytes_are_of_every_tensor_once():
    x = torch.randn(2, 6, 8, 8)
    size_x, size_y = 4 * x.numel(), x.numel()

    def moved(layer, *inputs, **arguments):
        found = pyconv.explain(layer, *inputs, **arguments)
        for p in found.passes:
            assert p.bound == p.bytes / p.bandwidth > 0
        return [p.bytes for p in found.passes]

    pooled = size_x + size_y
    assert moved(nn.AvgPool2d(2), x) == [pooled, pooled]
    assert moved(nn.MaxPool2d(2), x) == [pooled, pooled]
    assert moved(nn.MaxPool2d(2, return_indices=True), x) == [pooled + 2 * size_y] * 2
    assert moved(nn.BatchNorm2d(6), x) == [2 * size_x, 3 * size_x]
    relu = {"training": True, "residual": x}
    assert moved(ops.batch_norm_relu, x, None, None, **relu) == [3 * size_x, 5 * size_x]
    y, indices = ops.max_pool2d(x, 2, return_indices=True)
    assert moved(ops.max_unpool2d, y, indices, kernel_size=2) == [pooled + 2 * size_y] * 2


def test_running_statistics_that_are_given_stay():
    mean, var = torch.zeros(6), torch.ones(6)
    pyconv.explain(ops.batch_norm, torch.randn(2, 6, 4, 4), mean, var, training=True)
    assert mean.eq(0).all()
    assert var.eq(1).all()


@pytest.mark.parametrize("name", ["max", "norm", "norm and relu"])
def test_measured(name):
    found = pyconv.explain(LAYERS[name], torch.randn(2, 6, 9, 10), measure=True)
    for p in found.passes:
        able = [k.name for k in p.candidates if not k.cannot]
        expected = able if name == "norm and relu" else [*able, "torch"]
        assert sorted(p.seconds) == sorted(expected)
        assert all(seconds > 0 for seconds in p.seconds.values())
    assert "of the roof" in str(found)


def test_an_image_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"explain: max_pool2d's input must be \(N, C, H, W\)"):
        pyconv.explain(nn.MaxPool2d(2), torch.randn(3, 8, 8))
