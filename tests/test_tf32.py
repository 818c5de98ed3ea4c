"""float32 on the CUDA kernels' tensor cores: rounded to TF32, only where that is allowed."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import _native, ops
from tests.backends import cuda_kernels
from tests.cases import CONV2D_CUDA, conv2d
from tests.helpers import LAYOUTS, assert_close, integers, random

pytestmark = pytest.mark.skipif(_native.lib is None, reason=_native.reason)
TENSOR_CORES = [k for k in cuda_kernels("conv2d") if k == "tensor_cores"]
CASES = [
    *CONV2D_CUDA,
    # Chunks of 4 channels, steps of 16 terms, groups of one chunk, phases of a stride.
    conv2d("mb2ic4ih9iw7oc12kh3ph1"),
    conv2d("mb1ic12ih10oc4kh3sh2ph1"),
    conv2d("mb1ic8ih7oc8kh3ph1g2"),
    conv2d("mb1ic20ih1iw130oc68kh1kw3pw1ph0"),
]
ids = {"ids": str}


@pytest.fixture
def allowed():
    pyconv.backends.cuda.allow_tf32 = True
    yield
    pyconv.backends.cuda.allow_tf32 = False


def rounded(t):
    """The nearest values with 10 bits of mantissa, of two the one away from zero."""
    bits = t.detach().contiguous().view(torch.int32)
    values = ((bits + 0x1000) & ~0x1FFF).view(torch.float32).view(t.shape)
    return torch.empty_like(t).copy_(values)


def gradients(x, w, dy, case, conv, **arguments):
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = conv(x, w, **case.arguments, **arguments)
    return (y.detach(), *torch.autograd.grad(y, (x, w), dy))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", TENSOR_CORES, **ids)
@pytest.mark.parametrize("case", CASES, **ids)
def test_operands_are_rounded_once_and_sums_are_in_float32(case, algorithm, layout, allowed):
    x, w = random(*case.x, layout=layout), random(*case.w, layout=layout)
    dy = random(*case.y, layout=layout)
    exact = rounded(x), rounded(w), rounded(dy)
    judge = gradients(*(t.double() for t in exact), case, F.conv2d)
    sizes = gradients(*(t.double().abs() for t in exact), case, F.conv2d)
    counts = (case.ic * case.kh * case.kw, case.oc * case.kh * case.kw, dy[:, 0].numel())
    # Of values that TF32 has, and of values that it has not: the same bits.
    results = gradients(x, w, dy, case, ops.conv2d, algorithm=algorithm)
    of_exact = gradients(*exact, case, ops.conv2d, algorithm=algorithm)
    for name, got, same, expected, size, terms in zip(
        ("y", "dx", "dw"), results, of_exact, judge, sizes, counts, strict=True
    ):
        assert torch.equal(got, same), name
        assert_close(got, expected, magnitude=size, terms=terms, name=name)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", TENSOR_CORES, **ids)
def test_small_integers_are_exact(algorithm, layout, allowed):
    case = conv2d("mb2ic12ih9iw8oc20kh3sh2ph1")
    x, w = integers(*case.x, layout=layout), integers(*case.w, layout=layout)
    dy = integers(*case.y, layout=layout)
    ours = gradients(x, w, dy, case, ops.conv2d, algorithm=algorithm)
    for got, expected in zip(
        ours, gradients(*(t.double() for t in (x, w, dy)), case, F.conv2d), strict=True
    ):
        assert torch.equal(got.double(), expected)


@pytest.mark.parametrize("algorithm", TENSOR_CORES[:1], **ids)
def test_infinities_and_nans_stay(algorithm, allowed):
    x, w = torch.ones(1, 4, 1, 3), torch.ones(4, 4, 1, 1)
    x[0, 0, 0] = torch.tensor([torch.inf, torch.nan, 1])
    y = ops.conv2d(x, w, algorithm=algorithm)
    assert y[0, 0, 0].isinf().tolist() == [True, False, False]
    assert y[0, 0, 0].isnan().tolist() == [False, True, False]


def test_it_is_off_until_asked_for():
    assert pyconv.backends.cuda.allow_tf32 is False
    x = random(1, 8, 4, 4)
    with pyconv.cuda_emulator():
        without = ops.conv2d(x, random(8, 8, 1, 1))
        why = r"needs bfloat16 or float16, or pyconv\.backends\.cuda\.allow_tf32 for float32"
        with pytest.raises(ValueError, match=why):
            ops.conv2d(x, random(8, 8, 1, 1), algorithm="tensor_cores")
    assert without.shape == (1, 8, 4, 4)
    with pytest.raises(TypeError, match="allow_tf32 must be True or False, got 1"):
        pyconv.backends.cuda.allow_tf32 = 1


def test_the_environment_allows_it():
    code = "import pyconv; assert pyconv.backends.cuda.allow_tf32 is True"
    run = subprocess.run([sys.executable, "-c", code], env={"PYCONV_ALLOW_TF32": "1"})
    assert run.returncode == 0


def test_in_nchw_it_must_pay_for_the_copies(allowed):
    def asked(kernel, size, channels, channels_last):
        shape = _native.lib.Conv2dShape(
            N=1, G=1, IC=channels, IH=8, IW=8, OC=channels, KH=size, KW=size, OH=8, OW=8, SH=1,
            SW=1, PH=size // 2, PW=size // 2, DH=1, DW=1, dtype="float32", channels_last=channels_last,
        )  # fmt: skip
        return {name: why for name, _, _, why in _native.lib.ask_cuda(shape, "fwd")}[kernel]

    assert asked("tensor_cores", 3, 64, channels_last=False) == ""
    assert asked("tensor_cores", 1, 16, channels_last=True) == ""
    why = asked("tensor_cores", 1, 16, channels_last=False)
    assert why == "pays in NCHW from 50 products per value that it copies to channels_last, got 12"
