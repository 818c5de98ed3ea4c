"""conv2d and conv_transpose2d: values and all gradients, judged in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyconv.data
import pyconv.reference
from pyconv import _native, ops
from tests.backends import cuda_kernels
from tests.cases import CONV2D, CONV2D_CUDA, conv2d, fits_winograd
from tests.helpers import (
    DTYPES,
    LAYOUTS,
    assert_close,
    in_float64,
    integers,
    random,
    runs_or_refuses,
    winograd_amplification,
    winograd_magnitude,
)

ALGORITHMS = _native.lib.algorithms["conv2d"] if _native.lib else ["reference"]
EVERYWHERE = [*ALGORITHMS, *cuda_kernels("conv2d")]
WITHOUT_CHECKS = [
    a for a in EVERYWHERE if getattr(a, "backend", "cpu") != "chk"
]  # which compute the same
ids = {"ids": str}


def operands(case, dtype=torch.float32, layout=torch.contiguous_format, draw=random):
    x = draw(*case.x, dtype=dtype, layout=layout, grad=True)
    w = draw(*case.w, dtype=dtype, layout=layout, grad=True)
    b = draw(case.oc, dtype=dtype, grad=True)
    return x, w, b


def check_against_float64(case, dtype, layout, algorithm):
    x, w, b = operands(case, dtype, layout)
    y = runs_or_refuses(lambda: ops.conv2d(x, w, b, **case.arguments, algorithm=algorithm))
    if y is None:
        return
    dy = random(*y.shape, dtype=dtype, layout=layout)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), dy)

    X, W, B = in_float64(x, w, b)
    Y = F.conv2d(X, W, B, **case.arguments)
    DX, DW, DB = torch.autograd.grad(Y, (X, W, B), dy.double())
    aX, aW, aB = in_float64(x.abs(), w.abs(), b.abs())  # sums of absolute values bound the rounding
    aY = F.conv2d(aX, aW, aB, **case.arguments)
    aDX, aDW, aDB = torch.autograd.grad(aY, (aX, aW, aB), dy.double().abs())

    if algorithm in (None, "winograd") and fits_winograd(case):
        aY, aDX = winograd_magnitude(aY, case), winograd_magnitude(aDX, case, gradient=True)
        aDW = winograd_amplification(case) * aDW.amax((2, 3), True)

    taps = case.kh * case.kw
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    assert_close(y, Y, magnitude=aY, terms=taps * case.ic // case.g, name="y")
    assert_close(dx, DX, magnitude=aDX, terms=taps * case.oc // case.g, name="dx")
    assert_close(dw, DW, magnitude=aDW, terms=pixels, name="dw")
    assert_close(db, DB, magnitude=aDB, terms=pixels, name="db")
    if (
        case.mb > 0 and case.oc > 1
    ):  # with one value along an axis torch's own strides are arbitrary
        assert y.stride() == F.conv2d(x, w, b, **case.arguments).stride()


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("algorithm", EVERYWHERE, **ids)
@pytest.mark.parametrize("case", CONV2D, **ids)
def test_values_and_gradients(case, algorithm, dtype, layout):
    check_against_float64(case, dtype, layout, algorithm)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("algorithm", cuda_kernels("conv2d"), **ids)
@pytest.mark.parametrize("case", CONV2D_CUDA, **ids)
def test_around_the_tiles_of_cuda_kernels(case, algorithm, dtype, layout):
    check_against_float64(case, dtype, layout, algorithm)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("case", CONV2D, **ids)
def test_every_instruction_set(case, dtype, layout, isa):
    check_against_float64(case, dtype, layout, None)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CONV2D, **ids)
def test_small_integers_are_exact(case, algorithm, layout, isa):
    if algorithm != "winograd":  # whose transforms round: tests/test_winograd.py states by how much
        check_small_integers(case, algorithm, layout)


def check_small_integers(case, algorithm, layout):
    x, w, b = operands(case, layout=layout, draw=integers)
    y = runs_or_refuses(lambda: ops.conv2d(x, w, b, **case.arguments, algorithm=algorithm))
    if y is None:
        return
    dy = integers(*y.shape, layout=layout)
    X, W, B = in_float64(x, w, b)
    Y = F.conv2d(X, W, B, **case.arguments)
    assert torch.equal(y.double(), Y)
    for got, expected in zip(
        torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(Y, (X, W, B), dy.double())
    ):
        assert torch.equal(got.double(), expected)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", WITHOUT_CHECKS[len(ALGORITHMS) :], **ids)
@pytest.mark.parametrize("case", CONV2D, **ids)
def test_small_integers_are_exact_on_cuda(case, algorithm, layout):
    check_small_integers(case, algorithm, layout)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_random_geometry(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    g, dh, dw, kh, kw = draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 4), draw(1, 4)
    ph, pw = draw(0, 4), draw(0, 4)
    ih = draw(max(1, dh * (kh - 1) + 1 - 2 * ph), 20)
    iw = draw(max(1, dw * (kw - 1) + 1 - 2 * pw), 20)
    case = conv2d(
        f"mb{draw(0, 3)}g{g}ic{g * draw(1, 6)}ih{ih}iw{iw}oc{g * draw(1, 20)}kh{kh}kw{kw}"
        f"sh{draw(1, 4)}sw{draw(1, 4)}ph{ph}pw{pw}dh{dh}dw{dw}"
    )
    dtype = data.draw(st.sampled_from(DTYPES))
    layout = data.draw(st.sampled_from(LAYOUTS))
    check_against_float64(case, dtype, layout, data.draw(st.sampled_from([None, *ALGORITHMS])))


DEPTHWISE = conv2d("mb1ic17ih9iw10oc17kh3ph1g17")


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", [None, "depthwise_channels", "depthwise_planes"])
def test_padding_is_not_multiplied(algorithm, layout, isa):
    x, w, _ = operands(DEPTHWISE, layout=layout)
    y = runs_or_refuses(lambda: ops.conv2d(x, w, **DEPTHWISE.arguments, algorithm=algorithm))
    if y is None:
        return
    dy = random(*y.shape, layout=layout)
    dy[:, :, 0] = torch.inf  # meets padding above and beside the image: 0 * inf would be NaN
    dy[:, :, :, -1] = -torch.inf
    ours = torch.autograd.grad(y, w, dy)[0]
    expected = torch.autograd.grad(F.conv2d(x, w, **DEPTHWISE.arguments), w, dy)[0]
    assert torch.equal(ours.isnan(), expected.isnan())


@pytest.mark.parametrize("case", CONV2D, **ids)
def test_plain_pytorch_reference_says_the_same(case):
    x, w, b = operands(case, torch.float64)
    geometry = (case.sh, case.sw, case.ph, case.pw, case.dh, case.dw, case.g)
    y = pyconv.reference.conv2d(x, w, b, *geometry, "")
    dy = random(*y.shape, dtype=torch.float64)
    Y = F.conv2d(x, w, b, **case.arguments)
    DX, DW = torch.autograd.grad(Y, (x, w), dy)
    assert_close(y, Y.detach(), magnitude=Y.detach().abs() + 10, terms=100)
    dx = pyconv.reference.conv2d_bwd_input(dy, w, case.ih, case.iw, *geometry, False, "")
    dw = pyconv.reference.conv2d_bwd_weight(dy, x, case.kh, case.kw, *geometry, False, "")
    assert_close(dx.detach(), DX, magnitude=DX.abs() + 10, terms=100)
    assert_close(dw.detach(), DW, magnitude=DW.abs() + 10, terms=100)


GRADCHECK = [
    conv2d(text)
    for text in (
        "ic4ih5iw6oc6kh3kw2sh2sw1ph1pw2dh1dw2g2",
        "ic2ih4oc3kh3ph1",
        "mb1ic3ih5oc3kh3sh2ph1g3",
    )
]


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", GRADCHECK, **ids)
def test_gradcheck_to_second_order(case, layout):
    x, w, b = operands(case, torch.float64, layout)

    def f(*args):
        return ops.conv2d(*args, **case.arguments)

    assert torch.autograd.gradcheck(
        f,
        (x, w, b),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(f, (x, w, b), check_fwd_over_rev=True)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_the_gradients_asked_for(needs):
    x, w, b = operands(GRADCHECK[1])
    for tensor, need in zip((x, w, b), needs):
        tensor.requires_grad_(need)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.conv2d(x, w, b, padding=1).backward(torch.randn(2, 3, 4, 4))
    ran = {event.name for event in profile.events()}
    assert ("pyconv::_conv2d_bwd_input" in ran) == needs[0]
    assert ("pyconv::_conv2d_bwd_weight" in ran) == needs[1]
    assert not any("aten::" in name and "conv" in name for name in ran)
    assert [t.grad is not None for t in (x, w, b)] == list(needs)


# --- arguments


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 2), (3, 5)], **ids)
@pytest.mark.parametrize("dilation", [1, (2, 3)], **ids)
def test_named_padding(padding, kernel, dilation):
    x, w = random(2, 3, 16, 17, dtype=torch.float64), random(4, 3, *kernel, dtype=torch.float64)
    y = ops.conv2d(x, w, padding=padding, dilation=dilation)
    torch.testing.assert_close(y, F.conv2d(x, w, padding=padding, dilation=dilation))


def test_unbatched_image():
    x, w, b = random(3, 8, 9), random(4, 3, 3, 3), random(4)
    y = ops.conv2d(x, w, b)
    assert y.shape == (4, 6, 7)
    torch.testing.assert_close(y, F.conv2d(x, w, b))


def strided_views():
    base = torch.randn(4, 6, 20, 22)
    yield "sliced", base[::2, 1:4, ::2, 1::3]
    yield "expanded", torch.randn(1, 3, 10, 10).expand(2, 3, 10, 10)
    yield "transposed", torch.randn(2, 3, 11, 10).transpose(2, 3)
    yield "sliced channels_last", base.to(memory_format=torch.channels_last)[:, ::2, 3:, ::2]
    yield "flipped batch stride", torch.randn(3, 2, 10, 10).transpose(0, 1)


@pytest.mark.parametrize(("name", "x"), list(strided_views()), ids=[n for n, _ in strided_views()])
def test_any_strides(name, x):
    w = torch.randn(4, x.shape[1], 6, 6)[:, :, ::2, 1::2]
    y, expected = ops.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1)
    assert_close(
        y,
        F.conv2d(x.double(), w.double(), padding=1),
        magnitude=expected.double().abs() + 5,
        terms=27,
    )
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("x_layout", LAYOUTS, **ids)
@pytest.mark.parametrize("w_layout", LAYOUTS, **ids)
def test_channels_last_if_either_operand_is(x_layout, w_layout):
    x, w = random(2, 3, 8, 9, layout=x_layout), random(4, 3, 3, 3, layout=w_layout)
    assert ops.conv2d(x, w).stride() == F.conv2d(x, w).stride()


def test_weight_gradient_has_the_layout_of_the_weight():
    for layout in LAYOUTS:
        x, w = random(2, 16, 8, 8, layout=layout), random(4, 16, 3, 3, layout=layout, grad=True)
        ops.conv2d(x, w).sum().backward()
        assert w.grad.stride() == w.stride()


SAME_BITS = [
    conv2d(text)
    for text in ("mb9ic5ih30oc18kh3ph1", "mb9ic5ih30oc18kh3sh2ph1", "mb5ic40ih40oc40kh3ph1g40")
]


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", SAME_BITS, **ids)
def test_the_same_bits_for_any_number_of_threads(case, algorithm, layout):
    x, w, b = operands(case, layout=layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = runs_or_refuses(lambda: ops.conv2d(x, w, b, **case.arguments, algorithm=algorithm))
        if y is None:
            return
        dy = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y, *torch.autograd.grad(y, (x, w, b), dy)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", WITHOUT_CHECKS, **ids)
@pytest.mark.parametrize("case", SAME_BITS, **ids)
def test_the_same_bits_in_any_batch(case, algorithm, layout):
    x, w, b = operands(case, layout=layout)

    def conv(x):
        return ops.conv2d(x, w, b, **case.arguments, algorithm=algorithm)

    whole = runs_or_refuses(lambda: conv(x))
    if whole is None:
        return
    for n in range(case.mb):
        assert torch.equal(whole[n : n + 1], conv(x[n : n + 1]))


# --- the kernel list


def test_forcing_an_unknown_algorithm_lists_the_known_ones():
    with pytest.raises(ValueError, match=r'no algorithm "winograd9000".*reference'):
        ops.conv2d(random(1, 1, 4, 4), random(1, 1, 3, 3), algorithm="winograd9000")


def test_the_reference_is_last_and_runs_alone():
    assert ALGORITHMS[-1] == "reference"
    assert len(set(ALGORITHMS)) == len(ALGORITHMS)


# --- transposed convolution


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(
    "arguments",
    [
        dict(),
        dict(stride=2, padding=1, output_padding=1),
        dict(stride=(3, 2), padding=(0, 2), output_padding=(2, 1), dilation=(2, 1)),
        dict(stride=2, groups=2),
        dict(dilation=3, output_padding=2, groups=2),
    ],
    **ids,
)
def test_conv_transpose2d(arguments, dtype, layout):
    groups = arguments.get("groups", 1)
    x = random(2, 4, 5, 6, dtype=dtype, layout=layout, grad=True)
    w = random(4, 6 // groups, 3, 3, dtype=dtype, layout=layout, grad=True)
    b = random(6, dtype=dtype, grad=True)
    y = ops.conv_transpose2d(x, w, b, **arguments)
    X, W, B = in_float64(x, w, b)
    Y = F.conv_transpose2d(X, W, B, **arguments)
    dy = random(*y.shape, dtype=dtype)
    # The bias is a second rounding to the output's dtype, after the sum's own.
    assert_close(y.double(), Y, magnitude=(Y.abs() + 20) * torch.finfo(dtype).eps * 2**52)
    grads = torch.autograd.grad(y, (x, w, b), dy)
    for got, expected in zip(grads, torch.autograd.grad(Y, (X, W, B), dy.double())):
        assert_close(got, expected, magnitude=expected.abs() + 40, terms=100)
    assert y.stride() == F.conv_transpose2d(x, w, b, **arguments).stride()


def test_conv_transpose2d_gradcheck():
    x = random(1, 4, 3, 4, dtype=torch.float64, grad=True)
    w = random(4, 3, 3, 2, dtype=torch.float64, grad=True)
    b = random(6, dtype=torch.float64, grad=True)

    def f(*args):
        return ops.conv_transpose2d(*args, stride=2, padding=1, output_padding=1, groups=2)

    assert torch.autograd.gradcheck(f, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (x, w, b))


# --- mistakes


X, W = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3)
MISTAKES = [
    (
        lambda: ops.conv2d(X[:, :3], W),
        "expected input.* to have 4 channels, but got 3 channels instead",
    ),
    (lambda: ops.conv2d(X[0, 0], W), "input must be 4-D .* got 2-D of shape"),
    (lambda: ops.conv2d(X[None], W), "input must be 4-D .* got 5-D"),
    (lambda: ops.conv2d(X, W[0]), r"weight must be 4-D \(OC, IC/groups, KH, KW\), got 3-D"),
    (lambda: ops.conv2d(X, W, stride=0), r"stride must be at least 1, got \(0, 0\)"),
    (lambda: ops.conv2d(X, W, dilation=(1, 0)), r"dilation must be at least 1, got \(1, 0\)"),
    (lambda: ops.conv2d(X, W, padding=-1), r"padding must be at least 0, got \(-1, -1\)"),
    (
        lambda: ops.conv2d(X, W, stride=(1, 2, 3)),
        r"stride must be an int or two ints, got \(1, 2, 3\)",
    ),
    (lambda: ops.conv2d(X, W, groups=0), "groups must be at least 1, got 0"),
    (lambda: ops.conv2d(X, W, groups=4), "divisible by groups"),
    (lambda: ops.conv2d(X, W, torch.zeros(5)), r"bias must have shape \(6,\).* got \(5,\)"),
    (lambda: ops.conv2d(X[..., :2], W), "Kernel size can't be greater than actual input size"),
    (lambda: ops.conv2d(X[:, :0], W[:, :0]), "no empty channel"),
    (lambda: ops.conv2d(X, W[:0]), "weight must not be empty"),
    (
        lambda: ops.conv2d(X, W.double()),
        "weight must have input's dtype torch.float32, got torch.float64",
    ),
    (lambda: ops.conv2d(X.int(), W.int()), "input must be float64, .*, got torch.int32"),
    (lambda: ops.conv2d(X, W, padding="full"), '"valid" or "same", got "full"'),
    (lambda: ops.conv2d(X, W, padding="same", stride=2), 'padding="same" needs stride 1, got'),
    (lambda: ops.conv2d(X, W.to("meta")), "weight must be on input's device cpu, got meta"),
    (lambda: ops.conv_transpose2d(X, W), "expected input.* to have 6 channels"),
    (
        lambda: ops.conv_transpose2d(X, W.transpose(0, 1), output_padding=1),
        "output_padding must be smaller",
    ),
    (
        lambda: ops.conv_transpose2d(X[..., :1, :1], W.transpose(0, 1), padding=9),
        "the output would be",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_named(call, message):
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=f"^conv(_transpose)?2d: .*{message}"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.conv2d(X.numpy(), W),
        lambda: ops.conv2d(X, W, stride=1.5),
        lambda: ops.conv2d(X, W, groups="2"),
        lambda: ops.conv2d(X, W, algorithm=3),
    ],
)
def test_wrong_types_are_type_errors(call):
    with pytest.raises(TypeError, match=r"^conv2d: .* must be "):
        call()


@pytest.mark.skipif(_native.lib is None, reason=_native.reason)
@pytest.mark.parametrize(
    "call",
    [
        lambda op: op.conv2d(X, W[0], None, 1, 1, 0, 0, 1, 1, 1, ""),
        lambda op: op.conv2d(X, W, None, 0, 1, 0, 0, 1, 1, 1, ""),
        lambda op: op.conv2d(X, W, torch.zeros(2), 1, 1, 0, 0, 1, 1, 1, ""),
        lambda op: op.conv2d(X, W, None, 1, 1, 0, 0, 9, 1, 1, ""),
        lambda op: op.conv2d(X, W, None, 1, 1, 0, 0, 1, 1, 3, ""),
        lambda op: op.conv2d(X, W.double(), None, 1, 1, 0, 0, 1, 1, 1, ""),
        lambda op: op.conv2d_bwd_input(X, W, 8, 8, 1, 1, 0, 0, 1, 1, 1, False, ""),
        lambda op: op.conv2d_bwd_weight(X, X, 3, 3, 1, 1, 0, 0, 1, 1, 1, False, ""),
    ],
)
def test_raw_operators_guard_memory_themselves(call):
    with pytest.raises((ValueError, RuntimeError), match="conv2d"):
        call(torch.ops.pyconv)


# --- seeds of the course


def test_course_one_channel():
    x, w = torch.arange(9.0).view(1, 1, 3, 3), torch.arange(4.0).view(1, 1, 2, 2)
    assert ops.conv2d(x, w).tolist() == [[[[19, 25], [37, 43]]]]


def test_course_two_channels():
    x = torch.stack([torch.arange(9.0), torch.arange(1.0, 10.0)]).view(1, 2, 3, 3)
    w = torch.stack([torch.arange(4.0), torch.arange(1.0, 5.0)]).view(1, 2, 2, 2)
    assert ops.conv2d(x, w).tolist() == [[[[56, 72], [104, 120]]]]


def test_course_stride_and_padding():
    x, w = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 5)
    assert ops.conv2d(x, w, stride=(3, 4), padding=(0, 1)).shape == (1, 1, 2, 2)


def test_course_edge_kernel_is_learned():
    x = torch.ones(1, 1, 6, 8)
    x[..., 2:6] = 0
    y = ops.conv2d(x, torch.tensor([[[[1.0, -1.0]]]]))
    w = torch.randn(1, 1, 1, 2, requires_grad=True)
    for _ in range(20):
        loss = (ops.conv2d(x, w) - y).square().sum()
        (dw,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            w -= 3e-2 * dw
    assert (w - torch.tensor([1.0, -1.0])).abs().max() < 0.05


def test_course_top_edge_of_a_three():
    digits = pyconv.data.load("mnist").train
    assert digits.labels[12] == 3
    pixels = (digits.images[12:13] * 255).round()
    top_edge = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]]).view(1, 1, 3, 3)
    edges = ops.conv2d(pixels, top_edge, padding=1)[0, 0]  # the window around each pixel
    assert edges[5, 7] == 762
    assert edges[8, 18] == -29
