"""Pooling and unpooling: values, indices and gradients, judged by torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyconv
import pyconv.reference
from pyconv import _native, ops
from tests.backends import cuda_kernels
from tests.helpers import DTYPES, LAYOUTS, assert_close, in_float64, integers, random

ids = {"ids": str}
NAN, INF = float("nan"), float("inf")
F32, NCHW, NHWC = torch.float32, *LAYOUTS


def kernels(*names):
    """(algorithm, dtype, layout): the list's choice and the reference everywhere, each other kernel
    where it can run."""
    names_anywhere = (None, "reference", *cuda_kernels("max_pool2d"))
    anywhere = [(a, d, l) for a in names_anywhere for d in DTYPES for l in LAYOUTS]
    anywhere = [k for k in anywhere if k[0] != "packs" or k[1] != torch.float64]
    home = {"rows": NCHW, "planes": NCHW, "transposed": NCHW, "channels": NHWC}
    return anywhere + [(name, F32, home[name]) for name in names if _native.lib]


def forced(algorithm, case):
    """An empty batch has no strides to tell channels_last by, in torch's own rule."""
    return {} if algorithm is None or case == "empty batch" else {"algorithm": algorithm}


def magnitude(grad_of, x, dy):
    """Sums of absolute values: what bounds the rounding of a gradient."""
    X = x.detach().double().clone().requires_grad_()
    return torch.autograd.grad(grad_of(X), X, dy.double().abs())[0]


# x, window; the names say what is special
WINDOWS = {
    "LeNet-5 S2": ((2, 6, 28, 28), dict(kernel_size=2)),
    "LeNet-5 S4": ((3, 16, 10, 10), dict(kernel_size=2, stride=2)),
    "ResNet stem": ((1, 8, 32, 30), dict(kernel_size=3, stride=2, padding=1)),
    "ceil, as GoogLeNet": ((2, 3, 13, 14), dict(kernel_size=3, stride=2, ceil_mode=True)),
    "stride 1": ((2, 4, 9, 17), dict(kernel_size=3, stride=1, padding=1)),
    "last window dropped": ((1, 1, 4, 4), dict(kernel_size=3, stride=3, padding=1, ceil_mode=True)),
    "overhang": ((2, 5, 4, 4), dict(kernel_size=3, stride=2, padding=1, ceil_mode=True)),
    "axes differ": (
        (2, 3, 11, 18),
        dict(kernel_size=(2, 5), stride=(3, 1), padding=(1, 2), ceil_mode=True),
    ),
    "gaps": ((1, 3, 10, 19), dict(kernel_size=(1, 2), stride=(3, 4))),
    "whole plane": ((4, 3, 7, 5), dict(kernel_size=(7, 5))),
    "whole plane, padded": ((2, 3, 3, 2), dict(kernel_size=(5, 4), padding=(1, 1))),
    "one pixel": ((2, 3, 1, 1), dict(kernel_size=1)),
    "wide": ((1, 2, 3, 70), dict(kernel_size=(2, 3), stride=1)),
    "empty batch": ((0, 3, 6, 6), dict(kernel_size=2)),
    # windows that a gradient is compiled for, columns of x around two vectors
    **{f"{k}x{k}, {st}, {p}, {w} columns": ((1, 2, 7, w), dict(kernel_size=k, stride=st, padding=p))
       for k, st, p in ((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1)) for w in (31, 33)},
    # columns of y and channels around the vector widths
    **{f"{w} columns": ((1, 2, 4, w), dict(kernel_size=(2, 1), stride=1)) for w in (3, 4, 5, 7, 8, 9)},
    **{f"{w} columns": ((1, 2, 4, w), dict(kernel_size=(2, 1), stride=1)) for w in (15, 16, 17, 33)},
    **{f"{c} channels": ((2, c, 4, 4), dict(kernel_size=2)) for c in (3, 4, 5, 7, 8, 9, 15, 16, 17, 33)},
}  # fmt: skip
DILATED = {
    "dilated": ((2, 3, 9, 12), dict(kernel_size=(2, 3), stride=1, dilation=(3, 2))),
    "dilated, strided": ((2, 3, 11, 19), dict(kernel_size=3, stride=2, dilation=(2, 3), ceil_mode=True)),
}  # fmt: skip
COUNTS = ({}, dict(count_include_pad=False), dict(divisor_override=3), dict(divisor_override=-2))
ADAPTIVE = {
    "global": ((3, 5, 7, 7), 1),
    "global, long": ((1, 3, 9, 61), (1, 1)),
    "halves": ((2, 4, 14, 6), (7, 3)),
    "overlapping": ((2, 3, 13, 13), (6, 5)),
    "larger": ((2, 3, 3, 3), (7, 4)),
    "None": ((2, 3, 4, 9), (None, 4)),
    "as it is": ((1, 2, 5, 6), (None, None)),
    "nothing": ((2, 3, 4, 4), (0, 2)),
    "one channel": ((2, 1, 6, 7), (1, 3)),
    "empty batch": ((0, 3, 4, 4), 2),
}
GLOBAL = ("global", "global, long", "empty batch")
DIVISIBLE = (*GLOBAL, "halves", "as it is")


# --- max pooling


def same(a, b):
    return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))


def check_max(x, name, positional, keyword, algorithm=None):
    """Values and indices are torch's own; gradients its own in float64."""
    keyword = {**keyword, "return_indices": True}
    y, indices = getattr(ops, name)(x, *positional, **keyword, algorithm=algorithm)
    (X,) = in_float64(x)
    Y, I = getattr(F, name)(X, *positional, **keyword)
    assert y.dtype == x.dtype
    assert indices.dtype == torch.int64
    assert same(y.double(), Y)
    assert torch.equal(indices, I)
    if x.shape[0] > 0 and x.shape[1] > 1 and y.numel():
        assert y.stride() == getattr(F, name)(x, *positional, **keyword)[0].stride()
        assert indices.stride() == y.stride()
    if y.numel() == 0 or x.isnan().any():
        return
    dy = random(*y.shape, dtype=x.dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    (DX,) = torch.autograd.grad(Y, X, dy.double())
    scatter = (
        torch.zeros_like(X).flatten(2).scatter_add(2, I.flatten(2), dy.double().abs().flatten(2))
    )
    assert_close(dx, DX, magnitude=scatter.view_as(X), terms=9, name="dx")
    if x.shape[1] > 1:
        assert dx.stride() == x.stride()

    keyword = {**keyword, "return_indices": False}
    z = getattr(ops, name)(
        x, *positional, **keyword, algorithm=algorithm
    )  # where they stand is kept as taps
    assert torch.equal(z, y)
    (dx,) = torch.autograd.grad(z, x, dy)
    assert_close(dx, DX, magnitude=scatter.view_as(X), terms=9, name="dx from taps")
    assert x.shape[1] == 1 or dx.stride() == x.stride()
    with torch.no_grad():  # nor that
        assert torch.equal(getattr(ops, name)(x, *positional, **keyword, algorithm=algorithm), y)


MAX_WINDOWS = {**WINDOWS, **DILATED}


@pytest.mark.parametrize(
    ("algorithm", "dtype", "layout"), kernels("rows", "transposed", "channels"), **ids
)
@pytest.mark.parametrize("case", MAX_WINDOWS)
def test_max_pool2d(case, algorithm, dtype, layout):
    size, window = MAX_WINDOWS[case]
    x = random(*size, dtype=dtype, layout=layout, grad=True)
    check_max(x, "max_pool2d", (), window, **forced(algorithm, case))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", MAX_WINDOWS)
def test_max_pool2d_in_every_instruction_set(case, layout, isa):
    size, window = MAX_WINDOWS[case]
    check_max(random(*size, layout=layout, grad=True), "max_pool2d", (), window)


@pytest.mark.parametrize(
    ("algorithm", "dtype", "layout"), kernels("rows", "transposed", "channels"), **ids
)
@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_max_pool2d(case, algorithm, dtype, layout):
    size, output_size = ADAPTIVE[case]
    x = random(*size, dtype=dtype, layout=layout, grad=True)
    if algorithm == "rows" and case not in DIVISIBLE:
        with pytest.raises(ValueError, match=r"rows.*cannot run.*adaptive windows"):
            ops.adaptive_max_pool2d(x, output_size, algorithm="rows")
        return
    check_max(x, "adaptive_max_pool2d", (output_size,), {}, **forced(algorithm, case))


PLANE = [[[[1.0, 7, 7, 2], [7, 0, 7, 7], [3, 3, 3, 3], [0, 3, 3, 9]]]]


@pytest.mark.parametrize(
    ("algorithm", "dtype", "layout"), kernels("rows", "transposed", "channels"), **ids
)
@pytest.mark.parametrize("special", ["ties", "-inf", "NaN", "mixed"])
def test_max_pool2d_chooses_as_torch_does(special, algorithm, dtype, layout, isa):
    """The first of equals, the first pixel of nothing but -inf, the last NaN; the padding never."""
    x = torch.tensor(PLANE).repeat(2, 5, 2, 5)
    if special in ("-inf", "mixed"):
        x[x == 3] = -INF
        x[0, 0] = -INF
    if special in ("NaN", "mixed"):
        x[x == 7] = NAN
    x = x.to(dtype).to(memory_format=layout).requires_grad_()
    for window in (
        dict(kernel_size=3, stride=1, padding=1),
        dict(kernel_size=2),
        dict(kernel_size=(4, 5), stride=2),
    ):
        check_max(x, "max_pool2d", (), window, algorithm)
        check_max(x, "adaptive_max_pool2d", (4,), {}, algorithm)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_a_window_between_the_pixels_has_no_index(layout):
    """torch gives such a window an index outside the plane, and its backward writes there."""
    x = random(2, 3, 2, 2, layout=layout, grad=True)
    y, indices = ops.max_pool2d(x, 2, 1, 1, dilation=3, return_indices=True)
    assert (y == -INF).all()
    assert (indices == -1).all()
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert (dx == 0).all()
    assert (pyconv.reference.max_pool2d(x, 2, 2, 1, 1, 1, 1, 3, 3, False, "")[1] == -1).all()


# --- average pooling


def check_avg(x, name, positional, keyword, algorithm=None):
    y = getattr(ops, name)(x, *positional, **keyword, algorithm=algorithm)

    def judge(t):
        return getattr(F, name)(t, *positional, **keyword)

    (X,) = in_float64(x)
    Y = judge(X)
    assert y.dtype == x.dtype
    assert_close(y, Y, magnitude=judge(X.detach().abs()).abs(), terms=25, name="y")
    if x.shape[0] > 0 and x.shape[1] > 1 and y.numel():
        assert y.stride() == judge(x).stride()
    if y.numel() == 0:
        return
    dy = random(*y.shape, dtype=x.dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    (DX,) = torch.autograd.grad(Y, X, dy.double())
    assert_close(dx, DX, magnitude=magnitude(judge, x, dy).abs(), terms=25, name="dx")
    if x.shape[1] > 1:
        assert dx.stride() == x.stride()


@pytest.mark.parametrize(
    ("algorithm", "dtype", "layout"), kernels("rows", "transposed", "channels"), **ids
)
@pytest.mark.parametrize("case", WINDOWS)
def test_avg_pool2d(case, algorithm, dtype, layout):
    size, window = WINDOWS[case]
    x = random(*size, dtype=dtype, layout=layout, grad=True)
    for count in COUNTS:
        check_avg(x, "avg_pool2d", (), {**window, **count}, **forced(algorithm, case))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", WINDOWS)
def test_avg_pool2d_in_every_instruction_set(case, layout, isa):
    size, window = WINDOWS[case]
    check_avg(random(*size, layout=layout, grad=True), "avg_pool2d", (), window)


@pytest.mark.parametrize(
    ("algorithm", "dtype", "layout"), kernels("planes", "rows", "transposed", "channels"), **ids
)
@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_avg_pool2d(case, algorithm, dtype, layout):
    size, output_size = ADAPTIVE[case]
    x = random(*size, dtype=dtype, layout=layout, grad=True)
    able = {"planes": GLOBAL, "rows": DIVISIBLE}.get(algorithm, ADAPTIVE)
    if case not in able:
        with pytest.raises(
            ValueError, match=f"{algorithm}.*cannot run.*(adaptive windows|whole plane)"
        ):
            ops.adaptive_avg_pool2d(x, output_size, algorithm=algorithm)
        return
    check_avg(x, "adaptive_avg_pool2d", (output_size,), {}, **forced(algorithm, case))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_avg_pool2d_in_every_instruction_set(case, layout, isa):
    size, output_size = ADAPTIVE[case]
    check_avg(random(*size, layout=layout, grad=True), "adaptive_avg_pool2d", (output_size,), {})


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("case", WINDOWS)
def test_small_integers_are_averaged_exactly(case, layout, isa):
    """Their sums are exact in any order, and one division rounds as torch's."""
    size, window = WINDOWS[case]
    x = integers(*size, layout=layout)
    for algorithm in (None, "reference"):
        y = ops.avg_pool2d(x, **window, algorithm=algorithm)
        assert torch.equal(y, F.avg_pool2d(x, **window))


@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("planes", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 65, 513])
def test_any_number_of_planes_turned(planes, dtype, isa):
    """Lanes are planes: as many as a vector or a tile has, one less, one more."""
    x = random(1, planes, 5, 7, dtype=dtype, grad=True)
    window = {"kernel_size": 3, "stride": 2, "padding": 1}
    check_max(x, "max_pool2d", (), window, "transposed")
    check_avg(x, "avg_pool2d", (), window, "transposed")
    check_avg(x, "adaptive_avg_pool2d", ((3, 4),), {}, "transposed")


# --- unpooling


UNPOOL = [*pyconv.algorithms("max_unpool2d"), *cuda_kernels("max_unpool2d")]


@pytest.mark.parametrize("algorithm", UNPOOL, **ids)
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("size", [(3, 4, 9, 11), (1, 40, 6, 7)], **ids)
def test_max_unpool2d_undoes_max_pool2d(size, dtype, layout, algorithm):
    x = random(*size, dtype=dtype, layout=layout)
    y, indices = ops.max_pool2d(x, 2, return_indices=True)
    y.requires_grad_()
    back = ops.max_unpool2d(y, indices, 2, output_size=x.shape, algorithm=algorithm)
    assert torch.equal(back, F.max_unpool2d(y, indices, 2, output_size=x.shape))
    assert back.stride() == x.stride()
    again, _ = ops.max_pool2d(back.masked_fill(back == 0, -INF), 2, return_indices=True)
    assert torch.equal(again, y)
    dback = random(*back.shape, dtype=dtype, layout=layout)
    (dy,) = torch.autograd.grad(back, y, dback)
    assert torch.equal(dy, dback.flatten(2).gather(2, indices.flatten(2)).view_as(y))


def test_max_unpool2d_output_size():
    x, indices = ops.max_pool2d(random(2, 3, 8, 8), 3, 2, 1, return_indices=True)
    for size in (None, (6, 6), (8, 7), [2, 3, 7, 8], torch.Size([2, 3, 8, 8])):
        try:
            expected = F.max_unpool2d(x, indices, 3, 2, 1, output_size=size)
        except RuntimeError:
            with pytest.raises(
                ValueError, match=r"max_unpool2d: .*(indices must lie|output_size must)"
            ):
                ops.max_unpool2d(x, indices, 3, 2, 1, output_size=size)
        else:
            assert torch.equal(ops.max_unpool2d(x, indices, 3, 2, 1, output_size=size), expected)


@pytest.mark.parametrize("algorithm", UNPOOL, **ids)
def test_max_unpool2d_of_equal_indices_keeps_the_last(algorithm):
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    y = ops.max_unpool2d(x, torch.zeros(1, 1, 2, 2, dtype=torch.int64), 2, algorithm=algorithm)
    assert y[0, 0, 0, 0] == 4
    assert y.sum() == 4


def test_max_unpool2d_batches():
    x, indices = ops.max_pool2d(random(2, 3, 8, 8), 2, return_indices=True)
    whole = ops.max_unpool2d(x, indices, 2)
    assert torch.equal(ops.max_unpool2d(x[1], indices[1], 2), whole[1])
    assert ops.max_unpool2d(x[:0], indices[:0], 2).shape == (0, 3, 8, 8)


# --- every geometry


def draw_case(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    kernel, stride = (draw(1, 4), draw(1, 4)), (draw(1, 4), draw(1, 4))
    padding, dilation = tuple(draw(0, k // 2) for k in kernel), (draw(1, 2), draw(1, 2))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    size = (draw(0, 2), draw(1, 20), draw(least[0], least[0] + 9), draw(least[1], least[1] + 30))
    dtype, layout = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(LAYOUTS))
    x = integers(*size, dtype=dtype, layout=layout, grad=True)
    return x, kernel, stride, padding, dilation, data.draw(st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_random_geometry_of_max_pool2d(data):
    x, kernel, stride, padding, dilation, ceil_mode = draw_case(data)
    y, indices = ops.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, True)
    Y, I = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, True)
    seen = indices >= 0  # torch gives windows between the pixels an index outside the plane
    assert torch.equal(y, Y)
    assert torch.equal(indices[seen], I[seen])
    assert (y[~seen] == -INF).all()
    dy = integers(*y.shape, dtype=x.dtype) * seen
    if seen.all():
        for dx, DX in zip(
            torch.autograd.grad(y, x, dy), torch.autograd.grad(Y, x, dy), strict=True
        ):
            assert torch.equal(dx, DX)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_random_geometry_of_averages(data):
    x, kernel, stride, padding, _, ceil_mode = draw_case(data)
    include = data.draw(st.booleans())
    divisor = data.draw(st.sampled_from([None, None, 7, -2]))
    window = (kernel, stride, padding, ceil_mode, include, divisor)
    check_avg(x, "avg_pool2d", window, {})
    output_size = (data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)))
    check_avg(x, "adaptive_avg_pool2d", (output_size,), {})
    check_max(x, "adaptive_max_pool2d", (output_size,), {})


# --- the plain PyTorch reference


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_plain_pytorch_reference_says_the_same(layout):
    reference, raw = pyconv.reference, torch.ops.pyconv
    last = layout == NHWC
    x = random(2, 3, 9, 10, dtype=torch.float64, layout=layout)
    x[:, :, 2:5, 3] = NAN
    x[:, 1] = -INF
    window = (3, 2, 2, 3, 1, 1)

    def compare(name, *args):
        ours, said = getattr(raw, name)(*args), getattr(reference, name)(*args)
        for a, b in zip(ours, said, strict=True) if isinstance(ours, tuple) else [(ours, said)]:
            torch.testing.assert_close(a, b, equal_nan=True)
            assert a.stride() == b.stride()
        return ours

    for ceil_mode in (False, True):
        y, indices = compare("max_pool2d", x, *window, 1, 2, ceil_mode, "")
        compare("max_pool2d_bwd", y, indices, 9, 10, *window, 1, 2, last, "")
        y, taps = compare("max_pool2d_taps", x, *window, 1, 1, ceil_mode, "")
        compare("max_pool2d_taps_bwd", y, taps, 9, 10, *window, last, "")
        if _native.lib:
            y, _ = reference.max_pool2d(x, *window, 1, 2, ceil_mode, "")
            values = raw._max_pool2d_values(x, *window, 1, 2, ceil_mode, "")
            torch.testing.assert_close(values, y, equal_nan=True)
            assert values.stride() == y.stride()
        for include, divisor in ((True, 0), (False, 0), (True, -3)):
            y = compare("avg_pool2d", x, *window, ceil_mode, include, divisor, "")
            compare("avg_pool2d_bwd", y, 9, 10, *window, include, divisor, last, "")
    y, indices = compare("adaptive_max_pool2d", x, 4, 13, "")
    compare("adaptive_max_pool2d_bwd", y, indices, 9, 10, last, "")
    y = compare("adaptive_avg_pool2d", x, 4, 13, "")
    compare("adaptive_avg_pool2d_bwd", y, 9, 10, last, "")
    y, indices = compare("max_pool2d", x, 2, 2, 2, 2, 0, 0, 1, 1, False, "")
    compare("max_unpool2d_bwd", compare("max_unpool2d", y, indices, 9, 10, ""), indices, "")


# --- seeds of the course


def test_course_windows():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert ops.max_pool2d(x, 2, stride=1).tolist() == [[[[4, 5], [7, 8]]]]
    assert ops.avg_pool2d(x, 2, stride=1).tolist() == [[[[2, 3], [5, 6]]]]


def test_indices_count_with_dilation():
    x = torch.arange(25.0).view(1, 1, 5, 5)
    x[0, 0, 0, 4] = 99
    _, indices = ops.max_pool2d(x, 2, 2, dilation=4, return_indices=True)
    assert indices.tolist() == [[[[4]]]]


def test_the_divisor_counts_padding_but_no_overhang():
    y = ops.avg_pool2d(torch.ones(1, 1, 4, 4), 3, 2, 1, ceil_mode=True)
    assert y[0, 0, 2, 2] == 0.25
