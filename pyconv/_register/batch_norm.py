"""batch_norm in training and in eval, the gradients of both, and the gradients of those.

With r = 1/sqrt(var + eps), xhat = (x - mean) * r, sums and means over the M values of a channel:

    train      y = xhat * weight + bias             mean and var are functions of x
    train_bwd  dx = weight * r * P(dy)              P(v) = v - mean(v) - xhat * mean(v * xhat)
               dweight = sum dy * xhat              dbias = sum dy
    eval       the same with given mean and var, and P(v) = v

What moves when x moves: d xhat = r * P(dx) and d r = -r^2 * mean(xhat * dx) in training. P is its
own transpose, hence the forward mode of train is its backward with a tangent in the place of dy.
The second derivatives below are plain torch operations, so that a third and a fourth exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyconv import _shapes
from pyconv._register._core import (
    empty,
    memory_format,
    register,
)
from pyconv.reference._common import wide
from pyconv.reference.batch_norm import column

_CHANNEL = (0, 2, 3)


def _fake_one_per_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=stats_dtype(x))


def fitting(x: Tensor, training: bool, eps: float, *per_channel: Tensor | None) -> None:
    """Refuses what the kernels refuse; per_channel are mean, var, weight and bias."""
    sizes = [None if t is None else t.shape for t in per_channel]
    _shapes.batch_norm("batch_norm", x.shape, training, eps, *sizes)
    for t in per_channel:
        if t is not None and t.dtype != stats_dtype(x):
            raise _shapes.ShapeError(
                f"batch_norm: what is per channel must be {stats_dtype(x)}, got {t.dtype}"
            )


def _fake_outputs(x):
    one, other = _fake_one_per_channel(x), _fake_one_per_channel(x)
    return empty(x, x.shape, memory_format(x)), one, other


def _fake_train(x, weight, bias, eps, algorithm):
    fitting(x, True, eps, None, None, weight, bias)
    return _fake_outputs(x)


def _fake_eval(x, mean, var, weight, bias, eps, algorithm):
    fitting(x, False, eps, mean, var, weight, bias)
    return empty(x, x.shape, memory_format(x))


def _fake_bwd(dy, x, mean, var, weight, eps, algorithm):
    return _fake_outputs(x)


def stats_dtype(x: Tensor) -> torch.dtype:
    """Of statistics and parameters."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _mean(t: Tensor) -> Tensor:
    return t.mean(_CHANNEL, keepdim=True)


def _sum(t: Tensor) -> Tensor:
    return t.sum(_CHANNEL)


def _factor(weight: Tensor | None) -> Any:
    return 1.0 if weight is None else column(weight)


def _standardise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """xhat and r of the batch itself, differentiable in x."""
    d = wide(x) - _mean(wide(x))
    r = torch.rsqrt(_mean(d.square()) + eps)
    return d * r, r


def _project(v: Tensor, xhat: Tensor) -> Tensor:
    return v - _mean(v) - xhat * _mean(v * xhat)


# --- y, mean, var = batch_norm_train(x, weight, bias)


def _train_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _, ctx.eps, ctx.algorithm = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)  # of mean and var they would be zeros, filled for nobody
    ctx.save_for_backward(x, mean, var, weight)
    ctx.save_for_forward(x, mean, var, weight)


def _train_backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple:
    if dy is None:
        return None, None, None, None, None
    x, mean, var, weight = ctx.saved_tensors
    _, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dweight, dbias = train_bwd(dy, x, mean, var, weight, ctx.eps, ctx.algorithm)
    return dx, dweight if need_weight else None, dbias if need_bias else None, None, None


def _train_jvp(ctx: Any, tx: Any, tweight: Any, tbias: Any, *_: Any) -> tuple:
    x, mean, var, weight = ctx.saved_tensors
    terms = []
    if tx is not None:
        terms.append(train_bwd(tx, x, mean, var, weight, ctx.eps, ctx.algorithm)[0])
    if tweight is not None:
        terms.append(train(x, tweight, None, ctx.eps, ctx.algorithm)[0])
    if tbias is not None:
        terms.append(column(tbias).to(x.dtype).expand_as(x))
    return sum(terms[1:], terms[0]), None, None


# --- y = batch_norm_eval(x, mean, var, weight, bias)


def _eval_setup(ctx: Any, inputs: tuple, y: Tensor) -> None:
    x, mean, var, weight, _, ctx.eps, ctx.algorithm = inputs
    ctx.save_for_backward(x, mean, var, weight)
    ctx.save_for_forward(x, mean, var, weight)


def _eval_backward(ctx: Any, dy: Tensor) -> tuple:
    x, mean, var, weight = ctx.saved_tensors
    need_mean, need_var, need_weight, need_bias = ctx.needs_input_grad[1:5]
    if not any((need_mean, need_var, need_weight, need_bias)):
        dx = eval(dy, torch.zeros_like(mean), var, weight, None, ctx.eps, ctx.algorithm)
        return dx, None, None, None, None, None, None
    dx, dweight, dbias = eval_bwd(dy, x, mean, var, weight, ctx.eps, ctx.algorithm)
    needs = need_mean, need_var, need_weight, need_bias
    return dx, *_eval_per_channel(var, weight, ctx.eps, dweight, dbias, needs), None, None


def _eval_per_channel(
    var: Tensor,
    weight: Tensor | None,
    eps: float,
    dweight: Tensor,
    dbias: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """dmean, dvar, dweight and dbias, where needed."""
    need_mean, need_var, need_weight, need_bias = needs
    scale = 1.0 if weight is None else weight
    r = torch.rsqrt(var + eps) if need_mean or need_var else var
    return (
        -scale * r * dbias if need_mean else None,
        -0.5 * scale * r.square() * dweight if need_var else None,
        dweight if need_weight else None,
        dbias if need_bias else None,
    )


def _eval_jvp(
    ctx: Any, tx: Any, tmean: Any, tvar: Any, tweight: Any, tbias: Any, *_: Any
) -> Tensor:
    x, mean, var, weight = ctx.saved_tensors
    r, factor = torch.rsqrt(var + ctx.eps), _factor(weight)
    xhat = (wide(x) - column(mean)) * column(r)
    terms = []
    if tx is not None:
        terms.append(wide(tx) * column(r) * factor)
    if tmean is not None:
        terms.append(-column(tmean * r) * factor * torch.ones_like(xhat))
    if tvar is not None:
        terms.append(-0.5 * xhat * column(r.square() * tvar) * factor)
    if tweight is not None:
        terms.append(xhat * column(tweight))
    if tbias is not None:
        terms.append(column(tbias).expand_as(x))
    return sum(terms[1:], terms[0]).to(x.dtype)


# --- dx, dweight, dbias = batch_norm_train_bwd(dy, x, mean, var, weight)


def _bwd_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, x, mean, var, weight, ctx.eps, ctx.algorithm = inputs
    ctx.save_for_backward(dy, x, mean, var, weight)
    ctx.save_for_forward(dy, x, mean, var, weight)


def _train_bwd_backward(ctx: Any, gx: Tensor, gweight: Tensor, gbias: Tensor) -> tuple:
    dy, x, _, _, weight = ctx.saved_tensors
    need_weight = ctx.needs_input_grad[4]
    xhat, r = _standardise(x, ctx.eps)
    factor, v, g = _factor(weight), wide(dy), wide(gx)
    g_projected = _project(g, xhat)
    alike = _mean(v * g_projected)  # through r, and in dweight
    ddy = factor * r * g_projected + column(gweight) * xhat + column(gbias)
    through_xhat = column(gweight) * v - factor * r * (_mean(v * xhat) * g + _mean(g * xhat) * v)
    ddx = r * _project(through_xhat, xhat) - factor * r.square() * alike * xhat
    dweight = _sum(r * v * g_projected) if need_weight else None
    return ddy.to(dy.dtype), ddx.to(x.dtype), None, None, dweight, None, None


def _train_bwd_jvp(
    ctx: Any, tdy: Any, tx: Any, _tmean: Any, _tvar: Any, tweight: Any, *_: Any
) -> tuple:
    dy, x, _, _, weight = ctx.saved_tensors
    xhat, r = _standardise(x, ctx.eps)
    factor, v = _factor(weight), wide(dy)
    v_projected = _project(v, xhat)
    tdx = torch.zeros_like(v)
    tdweight = tdbias = torch.zeros_like(_sum(v))
    if tdy is not None:
        tdx = tdx + factor * r * _project(wide(tdy), xhat)
        tdweight, tdbias = tdweight + _sum(wide(tdy) * xhat), tdbias + _sum(wide(tdy))
    if tx is not None:
        txhat = r * _project(wide(tx), xhat)
        tr = -r.square() * _mean(xhat * wide(tx))
        tprojected = -txhat * _mean(v * xhat) - xhat * _mean(v * txhat)
        tdx = tdx + factor * (tr * v_projected + r * tprojected)
        tdweight = tdweight + _sum(v * txhat)
    if tweight is not None:
        tdx = tdx + column(tweight) * r * v_projected
    return tdx.to(dy.dtype), tdweight, tdbias


# --- dx, dweight, dbias = batch_norm_eval_bwd(dy, x, mean, var, weight)


def _eval_bwd_backward(ctx: Any, gx: Tensor, gweight: Tensor, gbias: Tensor) -> tuple:
    dy, x, mean, var, weight = ctx.saved_tensors
    _, _, need_mean, need_var, need_weight = ctx.needs_input_grad[:5]
    r, v, g = torch.rsqrt(var + ctx.eps), wide(dy), wide(gx)
    factor, d = _factor(weight), wide(x) - column(mean)
    ddy = factor * column(r) * g + column(gweight * r) * d + column(gbias)
    ddx = column(gweight * r) * v
    dmean = -_sum(ddx) if need_mean else None
    dr = _sum(factor * g * v) + gweight * _sum(v * d)
    dvar = -0.5 * r**3 * dr if need_var else None
    dweight = r * _sum(g * v) if need_weight else None
    return ddy.to(dy.dtype), ddx.to(x.dtype), dmean, dvar, dweight, None, None


def _eval_bwd_jvp(
    ctx: Any, tdy: Any, tx: Any, tmean: Any, tvar: Any, tweight: Any, *_: Any
) -> tuple:
    dy, x, mean, var, weight = ctx.saved_tensors
    r, v = torch.rsqrt(var + ctx.eps), wide(dy)
    factor, d = _factor(weight), wide(x) - column(mean)
    tdx = torch.zeros_like(v)
    tdweight = tdbias = torch.zeros_like(_sum(v))
    if tdy is not None:
        tdx = tdx + factor * column(r) * wide(tdy)
        tdweight, tdbias = tdweight + r * _sum(wide(tdy) * d), tdbias + _sum(wide(tdy))
    if tx is not None:
        tdweight = tdweight + r * _sum(v * wide(tx))
    if tmean is not None:
        tdweight = tdweight - r * tmean * _sum(v)
    if tvar is not None:
        tr = -0.5 * r**3 * tvar
        tdx = tdx + factor * column(tr) * v
        tdweight = tdweight + tr * _sum(v * d)
    if tweight is not None:
        tdx = tdx + column(tweight * r) * v
    return tdx.to(dy.dtype), tdweight, tdbias


# --- batching: B batch norms of C channels are one of B*C channels


def _fold(size: int, in_dims: tuple, args: tuple) -> list[Any]:
    """Images (B, N, C, H, W) to (N, B*C, H, W), what is per channel (B, C) to (B*C,)."""
    folded = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            arg = arg.flatten(0, 1) if arg.dim() == 2 else arg.transpose(0, 1).flatten(1, 2)
        folded.append(arg)
    return folded


def _unfold(size: int, t: Tensor) -> tuple[Tensor, int]:
    """A result of folded arguments, and where its batch dimension is."""
    dim = 0 if t.dim() == 1 else 1
    return t.unflatten(dim, (size, t.shape[dim] // size)), dim


def folding(call: Callable[..., Any]) -> Callable[..., tuple]:
    """The vmap rule of an operator all of whose tensors have channels."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        outputs = call(*_fold(info.batch_size, in_dims, args))
        if isinstance(outputs, Tensor):
            return _unfold(info.batch_size, outputs)
        return tuple(zip(*(_unfold(info.batch_size, t) for t in outputs), strict=True))

    return rule


def _train_vmap(info: Any, in_dims: tuple, x: Any, weight: Any, bias: Any, *rest: Any) -> tuple:
    if in_dims[0] is None:  # one batch under many weights: its statistics are not batched
        xhat, mean, var = train(x, None, None, *rest)
        weight, bias = (
            t if t is None or dim is None else t.movedim(dim, 0)
            for t, dim in zip((weight, bias), in_dims[1:3], strict=True)
        )
        y = wide(xhat).expand(info.batch_size, *xhat.shape)
        y = y if weight is None else y * weight[..., None, :, None, None]
        y = y if bias is None else y + bias[..., None, :, None, None]
        return (y.to(x.dtype), mean, var), (0, None, None)
    return folding(train)(info, in_dims, x, weight, bias, *rest)


train: Callable[..., Any] = register(
    "batch_norm_train",
    tensors=3,
    fake=_fake_train,
    setup=_train_setup,
    backward=_train_backward,
    jvp=_train_jvp,
    vmap=_train_vmap,
)
eval: Callable[..., Any] = register(
    "batch_norm_eval",
    tensors=5,
    fake=_fake_eval,
    setup=_eval_setup,
    backward=_eval_backward,
    jvp=_eval_jvp,
    vmap=folding(lambda *args: eval(*args)),
)
train_bwd: Callable[..., Any] = register(
    "batch_norm_train_bwd",
    tensors=5,
    fake=_fake_bwd,
    setup=_bwd_setup,
    backward=_train_bwd_backward,
    jvp=_train_bwd_jvp,
    vmap=folding(lambda *args: train_bwd(*args)),
)
eval_bwd: Callable[..., Any] = register(
    "batch_norm_eval_bwd",
    tensors=5,
    fake=_fake_bwd,
    setup=_bwd_setup,
    backward=_eval_bwd_backward,
    jvp=_eval_bwd_jvp,
    vmap=folding(lambda *args: eval_bwd(*args)),
)
