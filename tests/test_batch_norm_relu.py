"""batch_norm_relu: the passes of batch_norm, with a sum and a ReLU in them, judged in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import pyconv.reference
from pyconv import ShapeError, ops
from tests.helpers import DTYPES, LAYOUTS, assert_close, in_float64, random
from tests.test_batch_norm import EVERYWHERE, SHAPES, magnitudes, operands, runs, stats_dtype

ids = {"ids": str}
CONTIGUOUS = torch.contiguous_format


def residual_of(x, layout):
    return random(*x.shape, dtype=x.dtype, layout=layout, grad=True)


# (with a residual, what no output exceeds)
ACTS = {"plain": (False, math.inf), "residual": (True, math.inf), "clipped": (True, 1.1)}
acts = pytest.mark.parametrize(("with_residual", "ceiling"), ACTS.values(), ids=list(ACTS))


def away_from_kinks(y, ceiling, near=0.05):
    """Whether a ReLU decides by more than rounding."""
    return ((y.abs() > near) & ((y - ceiling).abs() > near)).double()


def clipped(y, ceiling):
    """torch's ReLU6, or its ReLU."""
    return y.relu() if ceiling == math.inf else F.hardtanh(y, 0.0, ceiling)


def check_against_float64(
    shape, dtype, layout, algorithm, training, act=(True, 1.1), affine=(True, True)
):
    with_residual, ceiling = act
    x, weight, bias, *running = operands(shape, dtype, layout, stats_dtype(dtype), affine)
    z = residual_of(x, layout) if with_residual else None
    X, Z, W, B, *RUNNING = in_float64(x, z, weight, bias, *running)
    rest = (training, 0.3)
    y = ops.batch_norm_relu(
        x, *running, weight, bias, *rest, residual=z, ceiling=ceiling, algorithm=algorithm
    )
    BEFORE = F.batch_norm(X, *RUNNING, W, B, *rest) + (0 if Z is None else Z)
    ceiling = torch.tensor(ceiling, dtype=dtype).item()  # what a y of this dtype can be
    Y = clipped(BEFORE, ceiling)
    # Where rounding may decide on which side of a kink a value falls, no gradient comes from above.
    dy = (random(*shape, dtype=dtype) * away_from_kinks(BEFORE, ceiling)).to(dtype)
    dy = dy.to(memory_format=layout)
    got = torch.autograd.grad(y, [t for t in (x, z, weight, bias) if t is not None], dy)
    expected = torch.autograd.grad(Y, [t for t in (X, Z, W, B) if t is not None], dy.double())
    values = max(shape[0] * shape[2] * shape[3], 1)
    statistics = (None, None) if training else RUNNING
    size_y, size_dx, through = magnitudes(X, W, B, dy.double(), *statistics, 1e-5)
    if Z is not None:
        size_y = size_y + Z.detach().abs()
    assert y.dtype == got[0].dtype == dtype
    assert_close(y, Y, magnitude=size_y, terms=values, name="y")
    assert_close(got[0], expected[0], magnitude=size_dx, terms=values, name="dx")
    first = 1 if z is None else 2
    if z is not None:  # dy or zero
        assert torch.equal(got[1].double(), expected[1])
    sizes = [s for s, t in zip((through[1], through[0]), (W, B), strict=True) if t is not None]
    for a, b, size in zip(got[first:], expected[first:], sizes, strict=True):
        assert_close(a, b, magnitude=size, terms=values, name="dweight or dbias")
    for a, b in zip(running, RUNNING, strict=True):
        assert_close(a, b, magnitude=b.abs() + 5, terms=values, name="running statistics")
    if shape[0] > 0:
        assert y.is_contiguous(memory_format=layout)
        assert got[0].is_contiguous(memory_format=layout)


@acts
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("algorithm", EVERYWHERE, **ids)
def test_values_and_gradients(algorithm, dtype, layout, training, with_residual, ceiling):
    for shape in SHAPES:
        if getattr(algorithm, "backend", "") and math.prod(shape) > 4000:
            continue  # several parts: those of batch_norm
        if runs(algorithm, shape, layout, dtype):
            check_against_float64(
                shape, dtype, layout, algorithm, training, (with_residual, ceiling)
            )


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_every_tile_size_on_every_instruction_set(isa, dtype, layout):
    for size in (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65):
        for shape in ((3, 3, 1, size), (2, size, 3, 2)):  # lanes are pixels; channels
            check_against_float64(shape, dtype, layout, None, size % 2 == 1)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_empty_batch(training):
    check_against_float64((0, 3, 2, 2), torch.float32, CONTIGUOUS, None, training)


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)], **ids)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_without_weight_or_bias(training, affine):
    check_against_float64((3, 5, 4, 3), torch.float32, CONTIGUOUS, None, training, affine=affine)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_the_mask_is_that_of_the_stored_output(layout, training):
    """What underflows to zero when stored lets nothing pass, nor what reaches the ceiling, and a NaN does."""
    ceiling = 0.1  # rounded to 0.09998, as 0.09999 is
    x = torch.tensor([1e-6, -1e-6, 3.0, -3.0, 9.999, 10.5]).view(6, 1, 1, 1).expand(6, 17, 2, 2)
    x = x.half().to(memory_format=layout).clone().requires_grad_()
    z = torch.zeros_like(x, memory_format=layout)
    with torch.no_grad():
        z[0, 3] = float("nan")
    z.requires_grad_()
    mean, var = torch.zeros(17), torch.full((17,), 1e4)
    y = ops.batch_norm_relu(x, mean, var, training=training, residual=z, ceiling=ceiling)
    dy = random(*y.shape, dtype=y.dtype, layout=layout)
    (dz,) = torch.autograd.grad(y, z, dy)
    top = torch.tensor(ceiling).half()
    assert y.isnan().any()
    assert y.nan_to_num().max() == top
    assert torch.equal(dz, torch.where((y <= 0) | (y >= top), 0, dy))


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_at_both_bounds_the_gradient_is_that_of_relu6(dtype, layout):
    """Exact: weight and statistics leave the values what they are. Without a ceiling infinity lets pass."""
    values = torch.tensor([-1.0, -0.0, 0.0, 2.0**-14, 5.75, 6.0, 6.25, math.inf], dtype=dtype)
    x = values.view(1, 1, 2, 4).expand(3, 33, 2, 4).to(memory_format=layout).clone()
    x.requires_grad_()
    twin = x.detach().clone().requires_grad_()
    dy = random(*x.shape, dtype=dtype, layout=layout)
    stats = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var = torch.zeros(33, dtype=stats), torch.ones(33, dtype=stats)
    for ceiling, relu in ((6.0, F.relu6), (math.inf, F.relu)):
        y = ops.batch_norm_relu(x, mean, var, eps=0.0, ceiling=ceiling)
        expected = relu(twin)
        assert torch.equal(y, expected)
        (dx,), (DX,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, twin, dy)
        assert torch.equal(dx, DX)


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_any_number_of_threads_gives_the_same_bits(dtype, layout):
    x, weight, bias, *running = operands((4, 33, 30, 31), dtype, layout, torch.float32)
    z, dy = residual_of(x, layout), random(*x.shape, dtype=dtype, layout=layout)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = ops.batch_norm_relu(x, *running, weight, bias, True, 0.0, residual=z)
            results.append((y, *torch.autograd.grad(y, (x, z, weight, bias), dy)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], **ids)
def test_the_reference_in_python_says_the_same(dtype, training):
    x, weight, bias, mean, var = (
        t.detach() for t in operands((3, 5, 4, 3), dtype, CONTIGUOUS, stats_dtype(dtype))
    )
    z, dy = residual_of(x, CONTIGUOUS).detach(), random(*x.shape, dtype=dtype)
    ceiling = 1.1
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    kernels, reference = torch.ops.pyconv, pyconv.reference
    if training:
        args = (x, z, weight, bias, 1e-5, ceiling, "")
        actual = kernels.batch_norm_relu_train(*args)
        torch.testing.assert_close(actual, reference.batch_norm_relu_train(*args), **close)
        y, mean, var = actual
        name = "batch_norm_relu_train_bwd"
    else:
        args = (x, z, mean, var, weight, bias, 1e-5, ceiling, "")
        y = kernels.batch_norm_relu_eval(*args)
        torch.testing.assert_close(y, reference.batch_norm_relu_eval(*args), **close)
        name = "batch_norm_relu_eval_bwd"
    for wanted in (True, False):
        args = (dy, y, x, mean, var, weight, wanted, 1e-5, ceiling, "")
        torch.testing.assert_close(
            getattr(kernels, name)(*args), getattr(reference, name)(*args), **close
        )


# --- derivatives


def double_operands(layout=CONTIGUOUS):
    """With no value nearer to zero or 1.1 than a difference quotient reaches."""
    while True:
        tensors = operands((3, 2, 2, 3), torch.float64, layout, torch.float64, mean=0.3, spread=1)
        x, weight, bias, mean, var = tensors
        z = residual_of(x, layout)
        sums = [F.batch_norm(x, mean, var, weight, bias, training) for training in (True, False)]
        both = torch.stack([*sums, *(s + z for s in sums)])
        if away_from_kinks(both, 1.1, 1e-3).all() and (both < 0).any() and (both > 1.1).any():
            return x, z, weight, bias, mean.clone(), var.clone()


@pytest.mark.parametrize("layout", LAYOUTS, **ids)
@acts
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck_to_second_order(training, with_residual, ceiling, layout):
    torch.manual_seed(3)
    x, z, weight, bias, *running = double_operands(layout)

    def f(x, weight, bias, z=None):
        rest = (training, 0.0)
        return ops.batch_norm_relu(x, *running, weight, bias, *rest, residual=z, ceiling=ceiling)

    inputs = (x, weight, bias, z) if with_residual else (x, weight, bias)
    assert gradcheck(
        f, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_batched_grad=True)


def test_gradcheck_in_given_statistics_and_in_the_residual_alone():
    torch.manual_seed(3)
    x, z, weight, bias, mean, var = double_operands()
    f = lambda *args: ops.batch_norm_relu(*args[:-1], residual=args[-1])  # noqa: E731
    inputs = (x, mean.requires_grad_(), var.requires_grad_(), weight, bias, z)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True)
    constant = [t.detach() for t in inputs[:-1]]
    assert gradcheck(lambda z: f(*constant, z), (z,), check_forward_ad=True)


@pytest.mark.parametrize("batched", ["x", "residual", "weight", "x residual weight"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_vmap_is_a_loop(training, batched):
    x, z, weight, bias, mean, var = (t.detach() for t in double_operands())
    running = (None, None) if training else (mean, var)

    def f(x, z, weight):
        def call(x, z, weight):
            rest = {"residual": z, "ceiling": 1.1}
            return ops.batch_norm_relu(x, *running, weight, bias, training, **rest)

        return call(x, z, weight), grad(lambda *t: call(*t).sin().sum(), (0, 1, 2))(x, z, weight)

    names = {"x": x, "residual": z, "weight": weight}
    args = [
        torch.stack([t + 0.1 * i for i in range(3)]) if name in batched.split() else t
        for name, t in names.items()
    ]
    dims = tuple(0 if name in batched.split() else None for name in names)
    lanes = [
        f(*(t if dim is None else t[i] for t, dim in zip(args, dims, strict=True)))
        for i in range(3)
    ]
    y, grads = vmap(f, dims)(*args)
    torch.testing.assert_close(y, torch.stack([lane[0] for lane in lanes]))
    for k in range(3):
        torch.testing.assert_close(grads[k], torch.stack([lane[1][k] for lane in lanes]))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS, **ids)
def test_opcheck(training, layout):
    x, z, weight, bias, mean, var = double_operands(layout)
    op = torch.ops.pyconv
    if training:
        torch.library.opcheck(op.batch_norm_relu_train, (x, z, weight, bias, 1e-5, math.inf, ""))
    else:
        args = (x, None, mean, var, weight, None, 1e-5, 1.1, "")
        torch.library.opcheck(op.batch_norm_relu_eval, args)
    bwd = op.batch_norm_relu_train_bwd if training else op.batch_norm_relu_eval_bwd
    y = residual_of(x, layout)
    for residual in (True, False):
        torch.library.opcheck(bwd, (z, y, x, mean, var, weight, residual, 1e-5, 1.1, ""))


@pytest.mark.parametrize("ceiling", [math.inf, 1.1])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled(training, ceiling):
    x, weight, bias, *running = operands((2, 5, 6, 7), torch.float32, CONTIGUOUS, torch.float32)
    z, dy = residual_of(x, CONTIGUOUS), random(*x.shape)

    def f(x, z, weight, bias, mean, var):
        rest = {"residual": z, "ceiling": ceiling}
        return ops.batch_norm_relu(x, mean, var, weight, bias, training, **rest)

    results = []
    for call in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        mean, var = (t.clone() for t in running)
        y = call(x, z, weight, bias, mean, var)
        results.append((y, mean, var, *torch.autograd.grad(y, (x, z, weight, bias), dy)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autocast_leaves_the_dtype_of_the_data():
    x, weight, bias, *running = operands((2, 5, 6, 7), torch.bfloat16, CONTIGUOUS, torch.float32)
    z = residual_of(x, CONTIGUOUS)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.batch_norm_relu(x, *running, weight, bias, True, 0.0, residual=z)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, ops.batch_norm_relu(x, *running, weight, bias, True, 0.0, residual=z))


@pytest.mark.parametrize("dims", [(6, 4), (3, 4, 5), (2, 4, 3, 2, 2)], **ids)
def test_other_numbers_of_dimensions(dims):
    x, z = torch.randn(dims, dtype=torch.float64), torch.randn(dims, dtype=torch.float64)
    y = ops.batch_norm_relu(x, None, None, training=True, residual=z)
    torch.testing.assert_close(y, (F.batch_norm(x, None, None, training=True) + z).relu())


@pytest.mark.parametrize(
    ("residual", "says"),
    [
        (torch.zeros(2, 3, 4, 1), r"residual must have input's shape \(2, 3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4).double(), "residual must have input's dtype torch.float32"),
        (torch.zeros(2, 3, 4, 4, device="meta"), "residual must be on input's device cpu"),
    ],
)
def test_a_residual_that_does_not_fit(residual, says):
    with pytest.raises(ShapeError, match=f"batch_norm_relu: {says}"):
        ops.batch_norm_relu(torch.zeros(2, 3, 4, 4), None, None, training=True, residual=residual)


def test_errors_name_this_operator():
    with pytest.raises(ShapeError, match="batch_norm_relu: weight should contain 3 elements"):
        ops.batch_norm_relu(torch.zeros(2, 3, 4, 4), None, None, torch.ones(4), training=True)


@pytest.mark.parametrize("ceiling", [0.0, -1.0, math.nan])
def test_a_ceiling_that_lets_nothing_through(ceiling):
    with pytest.raises(
        ValueError, match=f"batch_norm_relu: ceiling must be above 0, got {ceiling}"
    ):
        ops.batch_norm_relu(torch.zeros(2, 3, 4, 4), None, None, training=True, ceiling=ceiling)


@pytest.mark.parametrize("ceiling", [math.inf, 1.1])
def test_the_emulated_gpu_says_the_same(ceiling):
    x, weight, bias, *running = operands((2, 3, 4, 5), torch.float32, CONTIGUOUS, torch.float32)
    z, dy = residual_of(x, CONTIGUOUS), random(*x.shape)

    def found():
        y = ops.batch_norm_relu(x, *running, weight, bias, True, 0.0, residual=z, ceiling=ceiling)
        return y, *torch.autograd.grad(y, (x, z, weight, bias), dy)

    here = found()
    with pyconv.cuda_emulator():
        torch.testing.assert_close(found(), here)
