"""batch_norm_relu in training and in eval, the gradients of both, and the gradients of those.

    y = min(relu(batch_norm(x) + residual), ceiling)

A gradient passes where 0 < y < ceiling. That mask moves with nothing, so every formula here is
batch_norm's own behind it: for the gradient g = dy where it passes, else 0, in the place of dy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyconv._register import batch_norm as _norm
from pyconv._register._core import register
from pyconv.reference._common import clipped
from pyconv.reference.batch_norm_relu import passed


class _Behind:
    """ctx for a formula of batch_norm, behind the mask."""

    def __init__(self, ctx: Any, *saved: Tensor | None, needs: tuple[bool, ...] = ()) -> None:
        self.saved_tensors = saved
        self.eps, self.algorithm, self.needs_input_grad = ctx.eps, ctx.algorithm, needs


def _fake_train(x, residual, weight, bias, eps, ceiling, algorithm):
    return _norm._fake_train(x, weight, bias, eps, algorithm)


def _fake_eval(x, residual, mean, var, weight, bias, eps, ceiling, algorithm):
    return _norm._fake_eval(x, mean, var, weight, bias, eps, algorithm)


def _fake_bwd(dy, y, x, mean, var, weight, residual, eps, ceiling, algorithm):
    dx, dweight, dbias = _norm._fake_bwd(dy, x, mean, var, weight, eps, algorithm)
    return dx, torch.empty_like(dx) if residual else dx.new_empty(0), dweight, dbias


# --- y, mean, var = batch_norm_relu_train(x, residual, weight, bias)


def _train_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, _, weight, _, ctx.eps, ctx.ceiling, ctx.algorithm = inputs
    y, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, y, mean, var, weight)
    ctx.save_for_forward(x, y, mean, var, weight)


def _train_backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple:
    if dy is None:
        return (None,) * 7
    x, y, mean, var, weight = ctx.saved_tensors
    _, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    dx, dresidual, dweight, dbias = train_bwd(
        dy, y, x, mean, var, weight, need_residual, ctx.eps, ctx.ceiling, ctx.algorithm
    )
    return (
        dx,
        dresidual if need_residual else None,
        dweight if need_weight else None,
        dbias if need_bias else None,
        None,
        None,
        None,
    )


def _train_jvp(ctx: Any, tx: Any, tresidual: Any, tweight: Any, tbias: Any, *_: Any) -> tuple:
    x, y, mean, var, weight = ctx.saved_tensors
    terms = [] if tresidual is None else [tresidual]
    if any(t is not None for t in (tx, tweight, tbias)):
        behind = _Behind(ctx, x, mean, var, weight)
        terms.append(_norm._train_jvp(behind, tx, tweight, tbias)[0])
    return passed(sum(terms[1:], terms[0]), y, ctx.ceiling), None, None


# --- y = batch_norm_relu_eval(x, residual, mean, var, weight, bias)


def _eval_setup(ctx: Any, inputs: tuple, y: Tensor) -> None:
    x, _, mean, var, weight, _, ctx.eps, ctx.ceiling, ctx.algorithm = inputs
    ctx.save_for_backward(x, y, mean, var, weight)
    ctx.save_for_forward(x, y, mean, var, weight)


def _eval_backward(ctx: Any, dy: Tensor) -> tuple:
    x, y, mean, var, weight = ctx.saved_tensors
    need_residual, *needs = ctx.needs_input_grad[1:6]
    dx, dresidual, dweight, dbias = eval_bwd(
        dy, y, x, mean, var, weight, need_residual, ctx.eps, ctx.ceiling, ctx.algorithm
    )
    per_channel = _norm._eval_per_channel(var, weight, ctx.eps, dweight, dbias, needs)
    return dx, dresidual if need_residual else None, *per_channel, None, None, None


def _eval_jvp(ctx: Any, tx: Any, tresidual: Any, *tangents: Any) -> Tensor:
    x, y, mean, var, weight = ctx.saved_tensors
    terms = [] if tresidual is None else [tresidual]
    if any(isinstance(t, Tensor) for t in (tx, *tangents)):
        behind = _Behind(ctx, x, mean, var, weight)
        terms.append(_norm._eval_jvp(behind, tx, *tangents))
    return passed(sum(terms[1:], terms[0]), y, ctx.ceiling)


# --- dx, dresidual, dweight, dbias = batch_norm_relu_*_bwd(dy, y, x, mean, var, weight, residual)


def _bwd_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.residual, ctx.eps, ctx.ceiling, ctx.algorithm = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _bwd_backward(backward: Callable[..., tuple]) -> Callable[..., tuple]:
    """From batch_norm's."""

    def behind_the_mask(ctx: Any, gx: Tensor, gresidual: Tensor, *rest: Tensor) -> tuple:
        dy, y, *others = ctx.saved_tensors
        need_dy, _, *needs = ctx.needs_input_grad[:6]
        behind = _Behind(ctx, passed(dy, y, ctx.ceiling), *others, needs=(need_dy, *needs))
        ddy, *gradients = backward(behind, gx, *rest)[:5]
        if ctx.residual:
            ddy = ddy + gresidual
        return passed(ddy, y, ctx.ceiling), None, *gradients, None, None, None, None

    return behind_the_mask


def _bwd_jvp(jvp: Callable[..., tuple]) -> Callable[..., tuple]:
    """From batch_norm's."""

    def behind_the_mask(ctx: Any, tdy: Any, _ty: Any, *tangents: Any) -> tuple:
        dy, y, *others = ctx.saved_tensors
        tg = None if tdy is None else passed(tdy, y, ctx.ceiling)
        behind = _Behind(ctx, passed(dy, y, ctx.ceiling), *others)
        tdx, tdweight, tdbias = jvp(behind, tg, *tangents)
        tresidual = torch.zeros_like(dy) if tg is None else tg
        return tdx, tresidual if ctx.residual else dy.new_empty(0), tdweight, tdbias

    return behind_the_mask


# --- batching, as in batch_norm.py


def _train_vmap(
    info: Any,
    in_dims: tuple,
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    eps: float,
    ceiling: float,
    algorithm: str,
) -> tuple:
    if in_dims[0] is None:  # one batch: its statistics are not batched
        dims = (None, *in_dims[2:6], None)
        (y, mean, var), dims = _norm._train_vmap(info, dims, x, weight, bias, eps, algorithm)
        if residual is not None:
            y = y + (residual if in_dims[1] is None else residual.movedim(in_dims[1], 0))
        return (clipped(y, ceiling), mean, var), dims
    rest = (eps, ceiling, algorithm)
    return _norm.folding(train)(info, in_dims, x, residual, weight, bias, *rest)


train: Callable[..., Any] = register(
    "batch_norm_relu_train",
    tensors=4,
    fake=_fake_train,
    setup=_train_setup,
    backward=_train_backward,
    jvp=_train_jvp,
    vmap=_train_vmap,
)
eval: Callable[..., Any] = register(
    "batch_norm_relu_eval",
    tensors=6,
    fake=_fake_eval,
    setup=_eval_setup,
    backward=_eval_backward,
    jvp=_eval_jvp,
    vmap=_norm.folding(lambda *args: eval(*args)),
)
train_bwd: Callable[..., Any] = register(
    "batch_norm_relu_train_bwd",
    tensors=6,
    fake=_fake_bwd,
    setup=_bwd_setup,
    backward=_bwd_backward(_norm._train_bwd_backward),
    jvp=_bwd_jvp(_norm._train_bwd_jvp),
    vmap=_norm.folding(lambda *args: train_bwd(*args)),
)
eval_bwd: Callable[..., Any] = register(
    "batch_norm_relu_eval_bwd",
    tensors=6,
    fake=_fake_bwd,
    setup=_bwd_setup,
    backward=_bwd_backward(_norm._eval_bwd_backward),
    jvp=_bwd_jvp(_norm._eval_bwd_jvp),
    vmap=_norm.folding(lambda *args: eval_bwd(*args)),
)
