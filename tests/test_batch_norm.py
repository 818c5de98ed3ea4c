"""batch_norm: values, running statistics and all gradients, judged in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pyconv.reference
from pyconv import ShapeError, _native, ops
from tests.backends import cuda_kernels
from tests.helpers import DTYPES, LAYOUTS, assert_close, in_float64, random

ALGORITHMS = _native.lib.algorithms["batch_norm"] if _native.lib else ["reference"]
EVERYWHERE = [*ALGORITHMS, *cuda_kernels("batch_norm")]
ids = {"ids": str}

SHAPES = [
    (4, 3, 5, 6),
    (2, 17, 4, 4),
    (3, 70, 20, 20),  # channels_last: several parts
    (20, 5, 21, 20),  # NCHW: several runs
    (2, 600, 3, 2),
    (9, 33, 1, 1),
    (5, 1, 7, 3),
    (1, 4, 1, 2),
    (3, 12, 5, 4),  # fours, not eights
]


def stats_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def runs(algorithm, shape, layout, dtype=torch.float32):
    """What the sentences of the kernel list say, said once more."""
    if algorithm in (None, "reference", "welford"):
        return algorithm != "welford" or dtype != torch.float64
    one_pixel, one_channel = shape[2] * shape[3] == 1, shape[1] == 1
    fits_planes = one_channel or (layout == torch.contiguous_format and not one_pixel)
    return fits_planes == (algorithm == "planes")


def operands(shape, dtype, layout, params, affine=(True, True), mean=2.0, spread=1.5):
    x = (torch.randn(shape) * spread + mean).to(dtype).to(memory_format=layout).requires_grad_()
    weight, bias = (
        random(shape[1], dtype=params, grad=True) if given else None for given in affine
    )
    running_mean, running_var = (
        torch.randn(shape[1]).to(params),
        (torch.rand(shape[1]) + 0.5).to(params),
    )
    return x, weight, bias, running_mean, running_var


@torch.no_grad()
def magnitudes(X, W, B, DY, mean, var, eps):
    """What the terms of y, dx and (dbias, dweight) amount to without their signs."""
    over, values = (0, 2, 3), max(X.shape[0] * X.shape[2] * X.shape[3], 1)
    column = lambda t: t[:, None, None]  # noqa: E731
    if mean is None:
        mean = X.mean(over)
        var = (X - column(mean)).square().mean(over)
    r = torch.rsqrt(var + eps)
    scale = column(r if W is None else r * W.abs())
    xhat = ((X - column(mean)).abs() + column(mean.abs())) * column(r)
    DY = DY.abs()
    through = DY.sum(over), (DY * xhat).sum(over)
    size_y = scale * (xhat + 1) / column(r) + (0 if B is None else column(B.abs()))
    size_dx = scale * (DY + column(through[0] / values) + xhat * column(through[1] / values))
    return size_y, size_dx, through


def check_against_float64(
    shape,
    dtype,
    layout,
    algorithm,
    training,
    affine=(True, True),
    track=True,
    momentum=0.1,
    eps=1e-5,
    params=None,
):
    params = params or stats_dtype(dtype)
    x, weight, bias, *running = operands(shape, dtype, layout, params, affine)
    X, W, B, *RUNNING = in_float64(x, weight, bias, *running)
    if not track and training:
        running, RUNNING = [None, None], [None, None]
    y = ops.batch_norm(x, *running, weight, bias, training, momentum, eps, algorithm=algorithm)
    Y = F.batch_norm(X, *RUNNING, W, B, training, momentum, eps)
    dy = random(*shape, dtype=dtype, layout=layout)
    inputs = [t for t in (x, weight, bias) if t is not None]
    got = torch.autograd.grad(y, inputs, dy)
    expected = torch.autograd.grad(Y, [t for t in (X, W, B) if t is not None], dy.double())

    values = max(shape[0] * shape[2] * shape[3], 1)
    statistics = (None, None) if training else RUNNING
    size_y, size_dx, through = magnitudes(X, W, B, dy.double(), *statistics, eps)

    assert y.dtype == got[0].dtype == dtype
    assert_close(y, Y, magnitude=size_y, terms=values, name="y")
    assert_close(got[0], expected[0], magnitude=size_dx, terms=values, name="dx")
    sizes = [s for s, t in zip((through[1], through[0]), (W, B), strict=True) if t is not None]
    for a, b, size in zip(got[1:], expected[1:], sizes, strict=True):
        assert_close(a, b, magnitude=size, terms=values, name="dweight or dbias")
    for a, b in zip(running, RUNNING, strict=True):
        if a is not None:
            assert_close(a, b, magnitude=b.abs() + 5, terms=values, name="running statistics")
    if shape[0] > 0:
        assert y.is_contiguous(memory_format=layout)
        assert got[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("algorithm", EVERYWHERE, **ids)
@pytest.mark.parametrize("shape", SHAPES, **ids)
def test_values_statistics_and_gradients(shape, algorithm, dtype, layout, training):
    if runs(algorithm, shape, layout, dtype):
        check_against_float64(shape, dtype, layout, algorithm, training)
    else:
        with pytest.raises(ValueError, match=f'algorithm "{algorithm}" cannot run fwd here: '):
            check_against_float64(shape, dtype, layout, algorithm, training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_every_tile_size_on_every_instruction_set(isa, dtype, layout, training):
    for size in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65):
        check_against_float64((3, 3, 1, size), dtype, layout, None, training)  # lanes = pixels
        check_against_float64((2, size, 3, 2), dtype, layout, None, training)  # lanes = channels


@pytest.mark.parametrize("affine", list(itertools.product((True, False), repeat=2)), **ids)
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_with_and_without_weight_bias_and_running_statistics(affine, track, training, layout):
    for dtype in (torch.float32, torch.bfloat16):
        check_against_float64((3, 5, 4, 3), dtype, layout, None, training, affine, track)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, 1.7, 1])
@pytest.mark.parametrize("eps", [1e-5, 0.7])
def test_momentum_and_eps(momentum, eps):
    check_against_float64(
        (3, 4, 5, 3), torch.float32, LAYOUTS[0], None, True, momentum=momentum, eps=eps
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], **ids)
def test_parameters_of_the_inputs_own_low_precision(dtype, training):
    x, weight, bias, *running = operands((4, 6, 5, 5), dtype, LAYOUTS[0], dtype)
    X, W, B, *RUNNING = in_float64(x, weight, bias, *running)
    y = ops.batch_norm(x, *running, weight, bias, training)
    Y = F.batch_norm(X, *RUNNING, W, B, training)
    dy = random(4, 6, 5, 5, dtype=dtype)
    close = {
        "rtol": torch.finfo(dtype).eps,
        "atol": torch.finfo(dtype).eps * 4,
        "check_dtype": False,
    }
    torch.testing.assert_close(y, Y, **close)
    torch.testing.assert_close(running, RUNNING, **close)
    for a, b in zip(
        torch.autograd.grad(y, (x, weight, bias), dy),
        torch.autograd.grad(Y, (X, W, B), dy.double()),
        strict=True,
    ):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, **close)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_random_shapes(data):
    n, h, w = (data.draw(st.integers(low, high)) for low, high in ((0, 5), (1, 20), (1, 20)))
    channels = data.draw(st.integers(1, 90))
    training = data.draw(st.booleans())
    if training and n * h * w == 1:
        n = 2
    dtype, layout = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(LAYOUTS))
    affine = data.draw(st.booleans()), data.draw(st.booleans())
    track, algorithm = data.draw(st.booleans()), data.draw(st.sampled_from([None, "reference"]))
    check_against_float64((n, channels, h, w), dtype, layout, algorithm, training, affine, track)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mean", [1e4, -3e5])
def test_a_mean_that_is_large_beside_the_deviation(algorithm, layout, mean, isa):
    check_large_mean((8, 19, 30, 30), algorithm, layout, mean)


def check_large_mean(shape, algorithm, layout, mean):
    if not runs(algorithm, shape, layout):
        return
    x, weight, bias, *running = operands(
        shape, torch.float32, layout, torch.float32, mean=mean, spread=1
    )
    X, W, B, *RUNNING = in_float64(x, weight, bias, *running)
    y = ops.batch_norm(x, *running, weight, bias, True, momentum=1.0, algorithm=algorithm)
    Y = F.batch_norm(X, *RUNNING, W, B, True, momentum=1.0)
    torch.testing.assert_close(y, Y, rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(running[0], RUNNING[0], rtol=1e-7, atol=0, check_dtype=False)
    torch.testing.assert_close(running[1], RUNNING[1], rtol=1e-5, atol=0, check_dtype=False)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", cuda_kernels("batch_norm"), **ids)
@pytest.mark.parametrize("mean", [1e4, -3e5])
def test_a_mean_that_is_large_beside_the_deviation_on_cuda(algorithm, layout, mean):
    check_large_mean((8, 19, 30, 30), algorithm, layout, mean)


@pytest.mark.parametrize("algorithm", EVERYWHERE, **ids)
def test_a_batch_whose_images_differ_widely(algorithm):
    x = torch.randn(6, 4, 16, 16) + torch.arange(6)[:, None, None, None] * 1e3
    layout = torch.channels_last if algorithm == "pixels" else torch.contiguous_format
    x = x.to(memory_format=layout)
    _, mean, var = torch.ops.pyconv.batch_norm_train(x, None, None, 1e-5, algorithm)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        var, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("guesses", [1, 4])
def test_values_far_from_the_mean_where_the_first_guess_at_it_looks(guesses, layout, isa):
    x = torch.randn(8, 19, 32, 32)
    # planes.h: 4 pixels of the first image; pixels.h: 8 pixels of all images together
    x[:, :, 0, 0] = x[0].flatten(1)[:, [0, 256, 512, 767][:guesses]] = 1e4
    x = x.to(memory_format=layout)
    _, mean, var = torch.ops.pyconv.batch_norm_train(x, None, None, 1e-5, "")
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        var, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-6, atol=0
    )


def test_constant_channels_have_no_variance():
    for layout in LAYOUTS:
        x = torch.full((5, 20, 6, 6), 1234.5678).to(memory_format=layout).requires_grad_()
        y = ops.batch_norm(x, None, None, training=True)
        y.backward(torch.randn_like(y))
        assert not y.any()
        assert x.grad.isfinite().all()


# --- what it does to the running statistics


def test_running_statistics_are_updated_in_place_by_torch():
    mean, var = torch.zeros(3), torch.ones(3)
    x = random(4, 3, 5, 5)
    ops.batch_norm(x, mean, var, training=True)
    assert (mean._version, var._version) == (1, 1)
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2, 3)))  # unbiased
    ops.batch_norm(x, mean, var)
    assert (mean._version, var._version) == (1, 1)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_an_empty_batch_leaves_them_as_they_are(dtype, layout):
    x, weight, bias, *running = operands((0, 3, 4, 4), dtype, layout, stats_dtype(dtype))
    for training in (True, False):
        mean, var = (t.clone() for t in running)
        y = ops.batch_norm(x, mean, var, weight, bias, training)
        dx, dweight, dbias = torch.autograd.grad(y.sum(), (x, weight, bias))
        assert y.shape == dx.shape == (0, 3, 4, 4)
        assert not dweight.any()
        assert not dbias.any()
        assert torch.equal(mean, running[0])
        assert torch.equal(var, running[1])


def test_a_later_batch_does_not_change_an_earlier_gradient():
    x, weight, bias, *running = operands((4, 3, 5, 5), torch.float32, LAYOUTS[0], torch.float32)
    y = ops.batch_norm(x, *running, weight, bias)
    expected = torch.autograd.grad(F.batch_norm(x, *running, weight, bias).sin().sum(), (x, weight))
    ops.batch_norm(x, *running, weight, bias, training=True, momentum=0.9)
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), (x, weight)), expected)


# --- arguments


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(7, 5),
        torch.randn(7, 10)[:, ::2],
        torch.randn(5, 7).t(),
        torch.randn(3, 5, 8),
        torch.randn(3, 8, 5).transpose(1, 2),
        torch.randn(2, 5, 3, 4, 6),
        torch.randn(2, 5, 3, 4, 6).to(memory_format=torch.channels_last_3d),
        torch.randn(4, 10, 12, 9)[::2, ::2, 1::3, ::2],
        torch.randn(1, 5, 4, 4).expand(3, 5, 4, 4),
        torch.randn(2, 6, 5, 4).transpose(1, 2),
        torch.randn(4, 10, 6, 6).to(memory_format=torch.channels_last)[:, ::2, 1:],
    ],
    ids=lambda x: f"{tuple(x.shape)} strides {x.stride()}",
)
def test_any_shape_and_strides(x, training):
    mean, var, weight, bias = torch.randn(5), torch.rand(5) + 0.5, torch.randn(5), torch.randn(5)
    MEAN, VAR = mean.clone(), var.clone()
    y = ops.batch_norm(x, mean, var, weight, bias, training)
    expected = F.batch_norm(x, MEAN, VAR, weight, bias, training)
    torch.testing.assert_close((y, mean, var), (expected, MEAN, VAR), rtol=1e-5, atol=1e-5)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_gradients_of_any_strides(layout):
    """Gradients have the layout of x however the gradient of y comes."""
    x, weight, bias, *_ = operands((4, 6, 5, 7), torch.float32, layout, torch.float32)
    y = ops.batch_norm(x, None, None, weight, bias, True)
    for dy in (
        torch.randn(4, 7, 5, 6).transpose(1, 3),
        torch.randn(4, 1, 5, 1).expand(4, 6, 5, 7),
        torch.randn(8, 6, 10, 7)[::2, :, ::2],
    ):
        got = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
        expected = torch.autograd.grad(
            F.batch_norm(x, None, None, weight, bias, True), (x, weight, bias), dy.contiguous()
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert got[0].stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_bits_for_any_number_of_threads(algorithm, layout):
    shape = (6, 37, 41, 40)
    if not runs(algorithm, shape, layout):
        return
    x, weight, bias, *_ = operands(shape, torch.float32, layout, torch.float32)
    dy, results = random(*shape), []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        mean, var = torch.zeros(37), torch.ones(37)
        y = ops.batch_norm(x, mean, var, weight, bias, True, algorithm=algorithm)
        results.append((y, mean, var, *torch.autograd.grad(y, (x, weight, bias), dy)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("needs", [(True, False, False), (True, True, True)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_frozen_parameters_cost_no_gradient_of_theirs(needs, training):
    x, weight, bias, *running = operands((2, 3, 4, 4), torch.float32, LAYOUTS[0], torch.float32)
    for tensor, need in zip((x, weight, bias), needs, strict=True):
        tensor.requires_grad_(need)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.batch_norm(x, *running, weight, bias, training).backward(torch.randn(2, 3, 4, 4))
    ran = {event.name for event in profile.events()}
    assert ("pyconv::_batch_norm_train_bwd" in ran) == training
    assert ("pyconv::_batch_norm_eval_bwd" in ran) == (not training and needs[1])
    assert not any("aten::" in name and "batch_norm" in name for name in ran)
    assert [t.grad is not None for t in (x, weight, bias)] == list(needs)


def test_autocast_keeps_the_dtype_of_the_input():
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x, weight, bias, *running = operands((2, 3, 4, 4), dtype, LAYOUTS[0], torch.float32)
            y = ops.batch_norm(x, *running, weight, bias, training=True)
            y.sum().backward()
            assert y.dtype == x.grad.dtype == dtype
            assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_plain_pytorch_reference_says_the_same(layout):
    x, weight, bias, mean, var = (
        t.detach() for t in operands((4, 3, 5, 6), torch.float64, layout, torch.float64)
    )
    dy, op, plain = torch.randn_like(x), torch.ops.pyconv, pyconv.reference
    for name, args in (
        ("batch_norm_train", (x, weight, bias)),
        ("batch_norm_eval", (x, mean, var, weight, bias)),
        ("batch_norm_train_bwd", (dy, x, mean, var, weight)),
        ("batch_norm_eval_bwd", (dy, x, mean, var, weight)),
        ("batch_norm_eval_bwd", (dy, x, mean, var, None)),
    ):
        actual, expected = (getattr(home, name)(*args, 1e-5, "") for home in (plain, op))
        torch.testing.assert_close(actual, expected)
        for a, b in zip(actual, expected, strict=True):
            assert a.stride() == b.stride()


# --- mistakes


X, ZERO, ONE = torch.zeros(2, 4, 3, 3), torch.zeros(4), torch.ones(4)
MISTAKES = [
    (
        lambda: ops.batch_norm(X[0, 0, 0], ZERO, ONE),
        r"input must be \(N, C\), .* got 1-D of shape \(3,\)",
    ),
    (
        lambda: ops.batch_norm(X, ZERO, None),
        "running_mean and running_var must either both be None or neither",
    ),
    (lambda: ops.batch_norm(X, None, ONE, training=True), "must either both be None or neither"),
    (lambda: ops.batch_norm(X, None, None), "running_mean must be defined in evaluation mode"),
    (
        lambda: ops.batch_norm(X, ZERO[:3], ONE),
        r"running_mean should contain 4 elements.* got shape \(3,\)",
    ),
    (
        lambda: ops.batch_norm(X, ZERO, ONE[:3], training=True),
        "running_var should contain 4 elements",
    ),
    (
        lambda: ops.batch_norm(X, ZERO, ONE, ONE[None]),
        r"weight should contain 4 elements.* got shape \(1, 4\)",
    ),
    (lambda: ops.batch_norm(X, ZERO, ONE, ONE, ZERO[:1]), "bias should contain 4 elements"),
    (lambda: ops.batch_norm(X, ZERO, ONE, eps=-1.0), "eps must be non-negative, but got -1.0"),
    (
        lambda: ops.batch_norm(X, ZERO, ONE, training=True, eps=0),
        "eps must be positive during training, but got 0",
    ),
    (
        lambda: ops.batch_norm(X[:1, :, :1, :1], ZERO, ONE, training=True),
        r"Expected more than 1 value per channel when training, got input size \(1, 4, 1, 1\)",
    ),
    (
        lambda: ops.batch_norm(X[:1, :, 0, 0], None, None, training=True),
        "Expected more than 1 value per channel",
    ),
    (lambda: ops.batch_norm(X.int(), ZERO, ONE), "input must be float64, .*, got torch.int32"),
    (
        lambda: ops.batch_norm(X, ZERO.double(), ONE),
        "running_mean must be torch.float32 for an input of torch.float32, got torch.float64",
    ),
    (
        lambda: ops.batch_norm(X.half(), ZERO, ONE, ONE.bfloat16()),
        "weight must be torch.float32 or torch.float16 for an input of torch.float16, got",
    ),
    (
        lambda: ops.batch_norm(X, ZERO, ONE.to("meta")),
        "running_var must be on input's device cpu, got meta",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_named(call, message):
    for error in (ValueError, RuntimeError, ShapeError):
        with pytest.raises(error, match=f"^batch_norm: .*{message}"):
            call()
    assert not ZERO.any()
    assert (ONE == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.batch_norm(X.numpy(), ZERO, ONE), "input must be a Tensor, got ndarray"),
        (lambda: ops.batch_norm(X, 0, ONE), "running_mean must be a Tensor, got int"),
        (lambda: ops.batch_norm(X, ZERO, ONE, weight=1.0), "weight must be a Tensor, got float"),
        (lambda: ops.batch_norm(X, ZERO, ONE, momentum=None), "momentum must be a float, got None"),
        (lambda: ops.batch_norm(X, ZERO, ONE, eps="small"), "eps must be a float, got 'small'"),
        (lambda: ops.batch_norm(X, ZERO, ONE, algorithm=3), "algorithm must be None or a name"),
    ],
)
def test_wrong_types_are_type_errors(call, message):
    with pytest.raises(TypeError, match=f"^batch_norm: {message}"):
        call()


@pytest.mark.parametrize(
    ("input", "algorithm", "message"),
    [
        (X, "fastest", 'there is no algorithm "fastest"; there are .*reference'),
        (X, "pixels", 'algorithm "pixels" cannot run fwd here: .* in NCHW none are'),
        (
            X.to(memory_format=torch.channels_last),
            "planes",
            "cannot run fwd here: .* in channels_last none are",
        ),
    ],
)
def test_a_forced_algorithm_runs_or_says_why_not(input, algorithm, message):
    with pytest.raises(ValueError, match=f"^batch_norm: .*{message}"):
        ops.batch_norm(input, None, None, training=True, algorithm=algorithm)
