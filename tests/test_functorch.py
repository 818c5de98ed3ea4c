"""torch.func and forward-mode differentiation: the same values as torch's, never silent zeros."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import pyconv
import pyconv.nn as ours
from pyconv import ops

close = torch.testing.assert_close


def double(*size):
    return torch.randn(*size, dtype=torch.float64)


def conv2d(library, x, w, b):
    return library.conv2d(x, w, b, stride=(2, 1), padding=1, groups=2)


def conv_transpose2d(library, x, w, b):
    return library.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1, groups=2)


class Plain:
    """Batch norm as its formula: F.batch_norm's derivative of a tangent is wrong in torch 2.13."""

    @staticmethod
    def batch_norm(x, mean, var, w, b, training=False):
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        mean, var, w, b = (t[:, None, None] for t in (mean, var, w, b))
        return (x - mean) * torch.rsqrt(var + 1e-5) * w + b


CASES = {
    "conv2d": (conv2d, lambda: (double(3, 4, 5, 4), double(6, 2, 3, 2), double(6))),
    "conv_transpose2d": (
        conv_transpose2d,
        lambda: (double(3, 4, 3, 4), double(4, 3, 2, 3), double(6)),
    ),
    "max_pool2d": (lambda lib, x: lib.max_pool2d(x, 3, 2, 1), lambda: (double(3, 2, 5, 6),)),
    "avg_pool2d": (lambda lib, x: lib.avg_pool2d(x, 3, 2, 1), lambda: (double(3, 2, 5, 6),)),
    "adaptive_avg_pool2d": (
        lambda lib, x: lib.adaptive_avg_pool2d(x, (2, 4)),
        lambda: (double(3, 2, 5, 6),),
    ),
    "adaptive_max_pool2d": (
        lambda lib, x: lib.adaptive_max_pool2d(x, (2, 4)),
        lambda: (double(3, 2, 5, 6),),
    ),
    "batch_norm": (
        lambda lib, x, w, b: lib.batch_norm(x, None, None, w, b, training=True),
        lambda: (double(3, 2, 3, 4), double(2), double(2)),
    ),
    "batch_norm, frozen": (
        lambda lib, x, w, b: lib.batch_norm(x, x.new_zeros(2), x.new_full((2,), 0.5), w, b),
        lambda: (double(3, 2, 3, 4), double(2), double(2)),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    """(our function, torch's, arguments, tangents)."""
    function, make = CASES[request.param]
    judge = Plain if request.param.startswith("batch_norm") else F
    return lambda *a: function(ops, *a), lambda *a: function(judge, *a), make(), make()


def loss(function):
    return lambda *args: function(*args).sin().sum()


def every(args):
    return tuple(range(len(args)))


def test_grad(case):
    f, twin, args, _ = case
    close(grad(loss(f), every(args))(*args), grad(loss(twin), every(args))(*args))


def test_jvp(case):
    f, twin, args, tangents = case
    actual = jvp(f, args, tangents)
    close(actual, jvp(twin, args, tangents))
    assert actual[1].abs().sum() > 0


def test_jvp_of_one_argument(case):
    f, twin, args, tangents = case
    for i in every(args):
        alone = [lambda a, g=g, i=i: g(*args[:i], a, *args[i + 1 :]) for g in (f, twin)]
        close(*[jvp(g, (args[i],), (tangents[i],)) for g in alone])


def test_jacrev_and_jacfwd(case):
    f, twin, args, _ = case
    expected = jacrev(twin, every(args))(*args)
    close(jacrev(f, every(args))(*args), expected)
    close(jacfwd(f, every(args))(*args), expected)


def test_hessian(case):
    f, twin, args, _ = case
    close(hessian(loss(f))(*args), hessian(loss(twin))(*args))


def test_hessian_vector_product(case):
    f, twin, args, tangents = case
    close(*[jvp(grad(loss(g), every(args)), args, tangents)[1] for g in (f, twin)])


def test_dual_numbers(case):
    f, twin, args, tangents = case
    results = []
    for function in (f, twin):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(a, t) for a, t in zip(args, tangents)]
            results.append(forward_ad.unpack_dual(function(*duals)).tangent)
    close(*results)


def test_gradient_of_a_tangent(case):
    f, twin, args, tangents = case
    results = []
    for function in (f, twin):
        leaves = [t.clone().requires_grad_() for t in (*args, *tangents)]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(a, t) for a, t in zip(leaves, leaves[len(args) :])]
            tangent = forward_ad.unpack_dual(function(*duals)).tangent
            results.append(torch.autograd.grad(tangent.sin().sum(), leaves, materialize_grads=True))
    close(*results)


def test_forward_mode_thrice(case):
    """Each level of jvp must see the tangents of the levels outside it."""
    f, twin, args, tangents = case

    def deeper(function):
        return lambda *a: jvp(function, a, tangents)[1]

    close(*[deeper(deeper(deeper(loss(g))))(*args) for g in (f, twin)])
    close(*[grad(deeper(deeper(loss(g))), every(args))(*args) for g in (f, twin)])


@pytest.mark.parametrize("order", [1, 2])
def test_the_registered_operators_themselves(order):
    """torch.ops.pyconv called by name, as compiled graphs do."""
    x, w, t = double(1, 2, 5, 5), double(3, 2, 3, 3), double(3, 2, 3, 3)

    def by_name(w):
        return torch.ops.pyconv.conv2d(x, w, None, 1, 1, 0, 0, 1, 1, 1, "").sin().sum()

    def expected(w):
        return F.conv2d(x, w).sin().sum()

    f, g = (by_name, expected) if order == 1 else (grad(by_name), grad(expected))
    close(jvp(f, (w,), (t,)), jvp(g, (w,), (t,)))
    close(jacrev(f)(w), jacrev(g)(w))
    close(vmap(f)(torch.stack([w, t])), vmap(g)(torch.stack([w, t])))


def test_vmap_over_the_images(case):
    f, twin, args, tangents = case
    stacked = torch.stack([args[0], tangents[0]], dim=2)
    rest = (None,) * (len(args) - 1)
    close(*[vmap(g, (2, *rest))(stacked, *args[1:]) for g in (f, twin)])


def test_vmap_over_everything_nested(case):
    f, twin, args, tangents = case
    stacked = [torch.stack([a, t]) for a, t in zip(args, tangents)]
    twice = [torch.stack([s, s.flip(0)]) for s in stacked]
    close(*[vmap(vmap(g))(*twice) for g in (f, twin)])


def test_batched_gradients(case):
    f, twin, args, _ = case
    results, directions = [], None
    for function in (f, twin):
        leaves = [a.clone().requires_grad_() for a in args]
        y = function(*leaves)
        directions = torch.randn(3, *y.shape, dtype=y.dtype) if directions is None else directions
        results.append(torch.autograd.grad(y, leaves, directions, is_grads_batched=True))
    close(*results)


def test_per_sample_gradients_of_a_network():
    model = ours.Sequential(
        ours.Conv2d(1, 3, 3),
        ours.ReLU(),
        ours.MaxPool2d(2),
        ours.Conv2d(3, 4, 2),
        ours.AdaptiveAvgPool2d(1),
        ours.Flatten(),
        ours.Linear(4, 2),
    ).double()
    params = {k: p.detach() for k, p in model.named_parameters()}
    x, target = double(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])

    def one(params, x, target):
        return F.cross_entropy(functional_call(model, params, (x[None],)), target[None])

    together = vmap(grad(one), (None, 0, 0))(params, x, target)
    for i in range(4):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), target[i : i + 1]).backward()
        for name, p in model.named_parameters():
            close(together[name][i], p.grad)


def test_ensemble():
    models = [ours.Sequential(ours.Conv2d(2, 3, 3), ours.AvgPool2d(2)).double() for _ in range(3)]
    params, buffers = stack_module_state(models)
    x = double(2, 2, 6, 6)
    together = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(params, buffers)
    close(together, torch.stack([m(x) for m in models]))


def test_linearize_and_vjp():
    x, w, t = double(1, 2, 5, 5), double(3, 2, 3, 3), double(1, 2, 5, 5)
    _, forward = torch.func.linearize(lambda x: pyconv.ops.conv2d(x, w), x)
    close(forward(t), F.conv2d(t, w))
    y, backward = torch.func.vjp(lambda x: pyconv.ops.conv2d(x, w), x)
    dy = torch.randn_like(y)
    close(backward(dy)[0], torch.nn.grad.conv2d_input(x.shape, w, dy))


def test_make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, w = double(1, 2, 5, 5), double(3, 2, 3, 3)
    graph = make_fx(grad(lambda w, x: pyconv.ops.conv2d(x, w).sin().sum()))(w, x)
    assert "pyconv.conv2d_bwd_weight" in graph.code
    close(graph(w, x), grad(lambda w, x: F.conv2d(x, w).sin().sum())(w, x))
