"""Pooling of views, of channels_last, of single images, and the same bits however the work is cut."""

import pytest
import torch
import torch.nn.functional as F

from pyconv import ops
from tests.helpers import LAYOUTS, integers, random

ids = {"ids": str}
NHWC = LAYOUTS[1]


def strided_views():
    base = torch.randn(4, 6, 20, 22)
    yield "sliced", base[::2, 1:4, ::2, 1::3]
    yield "expanded", torch.randn(1, 3, 10, 10).expand(2, 3, 10, 10)
    yield "transposed", torch.randn(2, 3, 11, 10).transpose(2, 3)
    yield "sliced channels_last", base.to(memory_format=NHWC)[:, ::2, 3:, ::2]
    yield "flipped batch stride", torch.randn(3, 2, 10, 10).transpose(0, 1)


POOLS = {
    "max_pool2d": lambda library, x: library.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda library, x: library.avg_pool2d(x, 3, 2, 1),
    "adaptive_max_pool2d": lambda library, x: library.adaptive_max_pool2d(x, (3, 4)),
    "adaptive_avg_pool2d": lambda library, x: library.adaptive_avg_pool2d(x, (3, 4)),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize(("name", "x"), list(strided_views()), ids=[n for n, _ in strided_views()])
def test_any_strides(name, x, pool):
    y, expected = pool(ops, x), pool(F, x)
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_unbatched_image(pool):
    x = random(3, 8, 9)
    torch.testing.assert_close(pool(ops, x), pool(F, x))


def test_a_stride_left_out_is_the_kernel():
    x = integers(1, 2, 9, 9)
    for stride in (None, (), []):
        assert torch.equal(ops.max_pool2d(x, 3, stride), F.max_pool2d(x, 3))
        assert torch.equal(ops.avg_pool2d(x, (3,), stride), F.avg_pool2d(x, 3))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_autocast_leaves_pooling_alone(pool):
    with torch.autocast("cpu", torch.bfloat16):
        assert pool(ops, random(1, 2, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_no_pooling_of_torch_runs_behind(pool):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pool(ops, random(1, 2, 8, 8, grad=True)).square().sum().backward()
    ran = {event.name for event in profile.events()}
    assert any(name.startswith("pyconv::_") and name.endswith("_bwd") for name in ran)
    assert not any("aten::" in name and "pool" in name for name in ran)


# --- the same bits


def bits(pool, x, dy_seed=0):
    x = x.detach().requires_grad_()
    y = pool(ops, x)
    torch.manual_seed(dy_seed)
    return y, *torch.autograd.grad(y, x, torch.randn(y.shape))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_the_same_bits_for_any_number_of_threads(pool, layout):
    x = random(7, 9, 41, 43, layout=layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(bits(pool, x))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_the_same_bits_in_any_batch(pool, layout):
    x = random(5, 4, 13, 13, layout=layout)
    whole = pool(ops, x)
    for n in range(5):
        assert torch.equal(whole[n : n + 1], pool(ops, x[n : n + 1]))
