"""conv2d_fused: bias, residual and ReLU in the kernels' own store, judged in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from pyconv import ShapeError, _native, ops, reference
from tests.backends import cuda_kernels
from tests.cases import CONV2D, CONV2D_CUDA, CONV2D_WINOGRAD, conv2d, fits_winograd
from tests.helpers import (
    DTYPES,
    LAYOUTS,
    assert_close,
    in_float64,
    random,
    runs_or_refuses,
    winograd_magnitude,
)

ALGORITHMS = _native.lib.algorithms["conv2d"] if _native.lib else ["reference"]
ids = {"ids": str}
CASE = conv2d("ic16ih9oc17kh3ph1")
GEOMETRY = (1, 1, 1, 1, 1, 1, 1, None, "")


def operands(case, dtype=torch.float32, layout=torch.contiguous_format):
    x = random(*case.x, dtype=dtype, layout=layout)
    w = random(*case.w, dtype=dtype, layout=layout)
    size = F.conv2d(x.double(), w.double(), **case.arguments).shape
    return x, w, random(case.oc, dtype=dtype), random(*size, dtype=dtype, layout=layout)


def in_steps(x, w, b, residual, relu, ceiling=math.inf, **arguments):
    """What torch's user writes without it."""
    y = F.conv2d(x, w, b, **arguments)
    y = y if residual is None else y + residual
    return y.clamp(0, ceiling) if relu else y


def check_against_float64(case, dtype, layout, algorithm, relu=True, add=True, ceiling=1.5):
    x, w, b, residual = operands(case, dtype, layout)
    residual = residual if add else None
    arguments = {**case.arguments, "ceiling": ceiling if relu else math.inf}
    y = runs_or_refuses(
        lambda: ops.conv2d_fused(x, w, b, residual, relu, **arguments, algorithm=algorithm)
    )
    if y is None:
        return
    expected = in_steps(*in_float64(x, w, b, residual), relu, **arguments)
    sizes = (t if t is None else t.double().abs() for t in (x, w, b, residual))
    magnitude = in_steps(*sizes, False, **case.arguments)
    if algorithm in (None, "winograd") and fits_winograd(case):
        magnitude = winograd_magnitude(magnitude, case)
    terms = case.kh * case.kw * case.ic // case.g + 2
    assert_close(y, expected, magnitude=magnitude, terms=terms, name="y")
    if case.mb > 0 and case.oc > 1:
        assert y.stride() == F.conv2d(x, w, **case.arguments).stride()


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CONV2D + CONV2D_WINOGRAD, **ids)
def test_every_kernel(case, algorithm, dtype, layout):
    check_against_float64(case, dtype, layout, algorithm)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("algorithm", cuda_kernels("conv2d"), **ids)
@pytest.mark.parametrize("case", CONV2D_CUDA + CONV2D[::8], **ids)
def test_every_cuda_kernel(case, algorithm, add, dtype, layout):
    check_against_float64(case, dtype, layout, algorithm, relu=add, add=add)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("case", CONV2D, **ids)
def test_every_instruction_set(case, dtype, layout, isa):
    check_against_float64(case, dtype, layout, None)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CONV2D[::4], **ids)
def test_the_same_bits_as_in_steps(case, algorithm, add, relu, layout):
    """Where sums are kept in the storage type itself, one store rounds as three steps do."""
    x, w, b, residual = operands(case, layout=layout)
    residual = residual if add else None
    ceiling = {"ceiling": 1.5} if relu else {}
    arguments = dict(**case.arguments, algorithm=algorithm)
    y = runs_or_refuses(lambda: ops.conv2d_fused(x, w, b, residual, relu, **arguments, **ceiling))
    if y is None:
        return
    steps = ops.conv2d(x, w, b, **arguments)
    steps = steps + residual if add else steps
    assert torch.equal(y, steps.clamp(0, 1.5) if relu else steps)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_low_precision_rounds_once(algorithm, layout):
    """bfloat16 has 8 bits: 256 + 1 - 256 is 1 in one rounding and 0 in two."""
    x = torch.full((1, 8, 6, 6), 1 / 8, dtype=torch.bfloat16).to(memory_format=layout)
    w = torch.zeros(8, 8, 3, 3, dtype=torch.bfloat16)
    w[:, :, 1, 1] = 1
    bias = torch.full((8,), 256.0, dtype=torch.bfloat16)
    residual = torch.full((1, 8, 6, 6), -256.0, dtype=torch.bfloat16)
    y = runs_or_refuses(
        lambda: ops.conv2d_fused(x, w, bias, residual, True, padding=1, algorithm=algorithm)
    )
    if y is not None:
        assert torch.equal(y, torch.ones_like(y))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nan_and_inf_pass_the_relu_as_they_pass_torchs(algorithm, groups, dtype, layout, isa):
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 2.0])
    residual = special.repeat(192)[:1152].view(1, 32, 6, 6).to(dtype).to(memory_format=layout)
    x = torch.zeros(1, 32, 6, 6, dtype=dtype).to(memory_format=layout)
    w = torch.ones(32, 32 // groups, 3, 3, dtype=dtype)

    def check(residual, bias, ceiling):
        arguments = dict(padding=1, groups=groups, ceiling=ceiling)
        y = runs_or_refuses(
            lambda: ops.conv2d_fused(x, w, bias, residual, True, **arguments, algorithm=algorithm)
        )
        if y is not None:
            expected = in_steps(x, w, bias, residual, True, **arguments)
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)

    check(residual, None, 6.0)
    check(None, special.repeat(6)[:32].to(dtype), 1.5)
    check(residual, None, math.inf)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_any_strides(layout):
    x = torch.randn(4, 6, 20, 22)[::2, 1:4, ::2, 1::2].to(memory_format=layout)
    w, b = torch.randn(4, 3, 6, 6)[:, :, ::2, 1::2], torch.randn(8)[::2]
    for residual in (
        torch.randn(2, 9, 8, 10).movedim(3, 1)[:, ::3][:, :4].transpose(2, 3),
        torch.randn(1, 4, 1, 1).expand(2, 4, 8, 9),
        torch.randn(2, 4, 8, 9).to(memory_format=torch.channels_last),
        torch.randn(4, 2, 8, 9).transpose(0, 1),
    ):
        y = ops.conv2d_fused(x, w, b, residual, True)
        expected = in_steps(x, w, b, residual, True)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert y.stride() == F.conv2d(x, w, b).stride()


def test_the_operands_are_left_alone():
    before = operands(CASE)
    after = [t.clone() for t in before]
    ops.conv2d_fused(*after, True, **CASE.arguments)
    assert all(torch.equal(a, b) for a, b in zip(after, before))


@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)], **ids)
def test_paddings_and_one_image(padding):
    x, w, b = random(3, 9, 9), random(4, 3, 2, 3), random(4)
    residual = random(*F.conv2d(x, w, padding=padding).shape)
    y = ops.conv2d_fused(x, w, b, residual, True, padding=padding)
    expected = in_steps(x, w, b, residual, True, padding=padding)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_bits_for_any_number_of_threads(algorithm):
    results = []
    tensors = operands(conv2d("mb9ic8ih30oc18kh3ph1"))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            runs_or_refuses(
                lambda: ops.conv2d_fused(*tensors, True, padding=1, algorithm=algorithm)
            )
        )
    assert results[0] is None or all(torch.equal(results[0], other) for other in results[1:])


def test_plain_pytorch_reference_says_the_same():
    x, w, b, residual = operands(CASE, torch.float64)
    y = reference.conv2d_fused(x, w, b, residual, True, 1.5, *GEOMETRY)
    torch.testing.assert_close(y, in_steps(x, w, b, residual, True, 1.5, padding=1))


# --- what is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(residual=torch.ones(1, 4, 8, 8)), ShapeError, r"residual must have .*\(2, 4, 8, 8\)"),
        (dict(residual=torch.ones(2, 4, 8)), ShapeError, "residual must have"),
        (dict(residual=torch.ones(2, 4, 8, 8).double()), ShapeError, "residual must have input's"),
        (dict(residual=1.0), TypeError, "residual must be a Tensor"),
        (dict(bias=torch.ones(3)), ShapeError, r"bias must have shape \(4,\)"),
        (dict(padding=-1), ShapeError, "padding must be at least 0"),
        (dict(groups=2), ShapeError, "groups=2"),
        (dict(weight=torch.ones(4, 3, 3)), ShapeError, "weight must be 4-D"),
        (dict(ceiling=0.0), ValueError, "ceiling must be above 0, got 0.0"),
        (dict(ceiling=math.nan), ValueError, "ceiling must be above 0, got nan"),
        (dict(ceiling="6"), TypeError, "ceiling must be a float"),
        (dict(ceiling=6, relu=False), ValueError, "ceiling must be infinity without relu"),
        (dict(algorithm="none of these"), ValueError, "no algorithm"),
        (dict(input=torch.ones(2, 3, 8, 8, dtype=torch.int32)), ShapeError, "input must be float"),
    ],
)
def test_mistakes_are_named(change, error, message):
    arguments = dict(
        input=torch.ones(2, 3, 8, 8),
        weight=torch.ones(4, 3, 3, 3),
        bias=torch.ones(4),
        residual=torch.ones(2, 4, 8, 8),
        relu=True,
        padding=1,
    )
    ops.conv2d_fused(**arguments)
    with pytest.raises(error, match=message):
        ops.conv2d_fused(**arguments | change)


@pytest.mark.parametrize("which", range(4))
def test_a_wanted_gradient_is_refused(which):
    tensors = operands(CASE)
    tensors[which].requires_grad_()
    with pytest.raises(RuntimeError, match=r"inference only.*pyconv\.fuse"):
        ops.conv2d_fused(*tensors, True, **CASE.arguments)
    with pytest.raises(RuntimeError, match="inference only"):
        torch.ops.pyconv.conv2d_fused(*tensors, True, 1.5, *GEOMETRY)
    with torch.no_grad():
        ops.conv2d_fused(*tensors, True, **CASE.arguments)
    with torch.inference_mode():
        ops.conv2d_fused(*tensors, True, **CASE.arguments)


def test_a_wanted_tangent_is_refused():
    x, w, b, residual = operands(CASE)

    def f(x):
        return ops.conv2d_fused(x, w, b, residual, True, padding=1)

    with pytest.raises(RuntimeError, match="inference only"):
        torch.func.grad(lambda x: f(x).sum())(x)
    with pytest.raises(RuntimeError, match="inference only"):
        torch.func.jvp(f, (x,), (x,))


# --- what torch is told


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_opcheck(layout):
    x, w, b, residual = operands(CASE, layout=layout)
    for arguments in ((x, w, b, residual, True, 1.5), (x, w, None, None, False, math.inf)):
        torch.library.opcheck(torch.ops.pyconv.conv2d_fused.default, (*arguments, *GEOMETRY))


def test_compile_and_export():
    tensors = operands(CASE)

    class Fused(torch.nn.Module):
        def forward(self, x, w, b, residual):
            return ops.conv2d_fused(x, w, b, residual, True, padding=1, ceiling=1.5)

    expected = Fused()(*tensors)
    assert torch.equal(torch.compile(Fused(), fullgraph=True)(*tensors), expected)
    assert torch.equal(torch.export.export(Fused(), tensors).module()(*tensors), expected)


def test_autocast():
    x, w, b, residual = operands(CASE)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d_fused(x, w, b, residual, True, padding=1)
    low = (t.bfloat16() for t in (x, w, b, residual))
    assert torch.equal(y, ops.conv2d_fused(*low, True, padding=1))


@pytest.mark.parametrize("in_dims", [(0, None, None, 0), (0, 0, None, None), (None, 0, 0, 1)])
def test_vmap(in_dims):
    x, w, b, residual = operands(CASE, torch.float64)
    tensors = []
    for t, dim in zip((x, w, b, residual), in_dims):
        tensors.append(t if dim is None else torch.stack([t, -t, t + 1], dim))

    def f(*tensors):
        return ops.conv2d_fused(*tensors, True, padding=1, ceiling=1.5)

    y = vmap(f, in_dims)(*tensors)
    for i in range(3):
        each = [t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims)]
        torch.testing.assert_close(y[i], f(*each))


def test_flops_are_those_of_the_convolution():
    x, w, b, residual = operands(CASE)
    counts = []
    for call in (
        lambda: ops.conv2d(x, w, b, padding=1),
        lambda: ops.conv2d_fused(x, w, b, residual, True, padding=1),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_meta_tensors():
    x, w, b, residual = (t.to("meta") for t in operands(CASE, layout=torch.channels_last))
    y = ops.conv2d_fused(x, w, b, residual, True, padding=1)
    assert y.device.type == "meta"
    assert y.is_contiguous(memory_format=torch.channels_last)
