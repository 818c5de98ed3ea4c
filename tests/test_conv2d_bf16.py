"""Pairs of bfloat16: sums of small integers must come out exactly, rounded once, on every instruction set."""

import pytest
import torch
import torch.nn.functional as F

from pyconv import _native, ops
from tests.cases import conv2d
from tests.helpers import LAYOUTS, assert_close, in_float64, integers, random, runs_or_refuses

ALGORITHMS = [
    name
    for name in (_native.lib.algorithms["conv2d"] if _native.lib else ["reference"])
    if name != "winograd"  # its transforms round
]
ids = {"ids": str}

# Tiles are 14 rows by 32 lanes in vectors of 16, terms come 384 at a time, and in pairs.
CASES = [
    *(f"mb2ic{ic}ih5oc{oc}kh1" for ic in (1, 2, 3, 31, 32, 33) for oc in (13, 14, 15)),
    *(f"mb1ic5ih{ih}iw1oc{oc}kh1" for ih in (13, 14, 15, 31, 33) for oc in (16, 17, 31, 32, 33)),
    *(f"mb2ic{ic}ih4oc18kh1" for ic in (383, 384, 385, 386, 769)),
    "mb2ic43ih6oc35kh3ph1",  # 387 terms
    "mb7ic9ih7oc33kh3ph1",  # planes of 49 pixels, several of them a slab: pairs lie in two images
    "mb3ic7ih21oc15kh3",  # 361 pixels
    "mb2ic6ih9iw10oc10kh3kw2sh2sw1ph1pw2dh1dw2g2",
    "mb2ic5ih12iw13oc34kh4kw5sh3sw2ph2",
    "mb1ic66ih9oc70kh3sh2ph1",
    "mb0ic5ih6oc18kh3ph1",
]


def gradients(case, layout, algorithm, draw):
    """Operands, and y, dx, dw; or None if the algorithm refuses."""
    x = draw(*case.x, dtype=torch.bfloat16, layout=layout, grad=True)
    w = draw(*case.w, dtype=torch.bfloat16, layout=layout, grad=True)
    y = runs_or_refuses(lambda: ops.conv2d(x, w, None, **case.arguments, algorithm=algorithm))
    if y is None:
        return None
    dy = draw(*y.shape, dtype=torch.bfloat16, layout=layout)
    return (x, w, dy), (y, *torch.autograd.grad(y, (x, w), dy))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", [conv2d(text) for text in CASES], **ids)
def test_small_integers_are_rounded_once(case, layout, isa):
    for algorithm in ALGORITHMS:
        found = gradients(case, layout, algorithm, integers)
        if found is None:
            continue
        (x, w, dy), results = found
        X, W = in_float64(x, w)
        Y = F.conv2d(X, W, **case.arguments)
        expected = (Y, *torch.autograd.grad(Y, (X, W), dy.double()))
        for got, exact in zip(results, expected):
            assert torch.equal(got, exact.bfloat16()), algorithm


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "case", [conv2d("mb9ic5ih30oc19kh3ph1"), conv2d("mb6ic33ih14oc70kh3sh2ph1")], **ids
)
def test_the_same_bits_for_any_number_of_threads(case, algorithm, layout):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        found = gradients(case, layout, algorithm, random)
        if found is None:
            return
        results.append(found[1])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_the_same_bits_in_any_batch(layout):
    x = random(5, 35, 9, 9, dtype=torch.bfloat16, layout=layout)
    w = random(20, 35, 3, 3, dtype=torch.bfloat16, layout=layout)
    whole = ops.conv2d(x, w, algorithm="implicit_gemm")
    for n in range(5):
        assert torch.equal(whole[n : n + 1], ops.conv2d(x[n : n + 1], w, algorithm="implicit_gemm"))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_sums_are_float32(layout, isa):
    """4096 products of 1 and one of -4080: sums in bfloat16 would stop growing at 256."""
    x = torch.ones(1, 4097, 3, 3, dtype=torch.bfloat16).to(memory_format=layout)
    w = torch.ones(17, 4097, 1, 1, dtype=torch.bfloat16)
    w[:, 4000] = -4080
    y = ops.conv2d(x, w.to(memory_format=layout), algorithm="implicit_gemm")
    assert torch.equal(y, torch.full_like(y, 16.0))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_infinities_and_nans_stay_where_they_belong(layout, isa):
    """An odd number of terms ends in half a pair: what fills it must not meet an infinity."""
    x = random(2, 5, 6, 7, dtype=torch.bfloat16, layout=layout)
    w = random(19, 5, 1, 1, dtype=torch.bfloat16, layout=layout)
    x[0, 4, 2, 3], x[1, 0, 1, 1], x[1, 2, 5, 6] = torch.inf, torch.nan, -torch.inf
    y = ops.conv2d(x, w, algorithm="implicit_gemm")
    expected = F.conv2d(x.double(), w.double())
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert_close(y[finite], expected[finite], magnitude=expected[finite].abs() + 10, terms=5)


def test_packed_weights_are_of_the_instruction_set(isa):
    x, w = random(1, 33, 7, 7, dtype=torch.bfloat16), random(40, 33, 3, 3, dtype=torch.bfloat16)
    x, w = x.to(memory_format=LAYOUTS[1]), w.to(memory_format=LAYOUTS[1])
    arguments = dict(padding=1, algorithm="implicit_gemm")
    packed = ops.conv2d_pack(x, w, **arguments)
    assert packed is not None
    y = ops.conv2d_fused(x, w, **arguments, packed=packed)
    assert torch.equal(y, ops.conv2d(x, w, **arguments))
