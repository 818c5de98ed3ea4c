"""Batch normalisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyconv import _shapes
from pyconv._register import batch_norm as _batch_norm
from pyconv._register import batch_norm_relu as _batch_norm_relu
from pyconv._register import running
from pyconv._register._core import wants_derivative
from pyconv.ops._check import algorithm_name, floating, same_dtype, tensor

_PER_CHANNEL = ("running_mean", "running_var", "weight", "bias")


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """Batch normalisation, equivalent to torch.nn.functional.batch_norm.

        y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]

    In training, mean and var are those of the batch (var biased: divided by the number M of values
    in a channel) and the running statistics, where given, are updated in place:

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * var * M / (M - 1)

    In eval, mean and var are the running statistics.

    Args:
        input: (N, C, H, W); also (N, C), (N, C, L) or any (N, C, ...). N may be 0, which leaves the
            running statistics as they are.
        running_mean, running_var: (C,) both or neither; needed in eval.
        weight, bias: (C,) or None for 1 and 0.
        training: normalise by the batch's own statistics.
        momentum: the share of the new batch in the running statistics.
        eps: added to the variance; positive in training.
        algorithm: a name of pyconv.algorithms("batch_norm") to force that kernel in both
            directions; None lets the list choose.

    Returns:
        As input; channels_last if input is. float64, float32, bfloat16, float16, with running
        statistics and parameters of that type or of float32; sums run in float32 or wider.

    Raises:
        ShapeError: (a ValueError and a RuntimeError) naming the argument that does not fit.
        ValueError: why the forced algorithm cannot run.
        TypeError: an argument of the wrong type.

    Source: Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167, algorithms 1 and 2.
    """
    op, per_channel = "batch_norm", (running_mean, running_var, weight, bias)
    try:
        rest = (eps, algorithm or "")
        return _normalise(op, _batch_norm, input, (), per_channel, training, momentum, *rest)
    except Exception:
        # As everywhere in pyconv.ops: what does not fit is refused before anything is touched, and
        # only then do these checks look for the words.
        _check(op, input, per_channel, training, momentum, eps, algorithm)
        raise


def batch_norm_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    ceiling: float = math.inf,
    algorithm: str | None = None,
) -> Tensor:
    """Batch normalisation, the sum with a residual, and ReLU, in the passes of the first alone.

        y = min(relu(batch_norm(input) + residual), ceiling)

    Rounded once. A gradient passes where 0 < y < ceiling, and where y is NaN; at both bounds it is
    0, as that of torch's ReLU6. The backward pass reads y to know where; what is saved for it is
    what batch_norm and a convolution that reads y save anyway.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps: as batch_norm.
        residual: of input's shape and dtype, or None.
        ceiling: what no output exceeds, above 0: 6 makes it ReLU6, infinity plain ReLU. It is rounded
            to input's dtype.
        algorithm: as batch_norm.

    Returns:
        As batch_norm.

    Raises:
        ShapeError, ValueError, TypeError: as batch_norm; ShapeError for a residual that does not fit,
            ValueError for a ceiling that is not above 0.

    Source: cuDNN's cudnnBatchNormalizationForwardTrainingEx, CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION.
    """
    op, per_channel = "batch_norm_relu", (running_mean, running_var, weight, bias)
    try:
        if not ceiling > 0:
            raise ValueError(f"{op}: ceiling must be above 0, got {ceiling}")
        z = None if residual is None else _as_images(_residual(op, residual, input))
        rest = (eps, ceiling, algorithm or "")
        return _normalise(op, _batch_norm_relu, input, (z,), per_channel, training, momentum, *rest)
    except Exception:
        same_dtype(op, input, residual=residual)
        if residual is not None:
            _residual(op, residual, input)
        _shapes.number(op, "ceiling", ceiling)
        _check(op, input, per_channel, training, momentum, eps, algorithm)
        raise


def _normalise(
    op: str,
    kernels: Any,
    input: Tensor,
    residual: tuple[Tensor | None, ...],
    per_channel: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    training: bool,
    momentum: float,
    *rest: Any,
) -> Tensor:
    """Calls one of an operator's two kernels; moves the running statistics."""
    running_mean, running_var, weight, bias = per_channel
    momentum = _shapes.number(op, "momentum", momentum)
    x = _as_images(input)
    half = x.dtype != _batch_norm.stats_dtype(x)
    if half:
        weight, bias = _widened(weight, x), _widened(bias, x)
    if training:
        y, mean, var = kernels.train(x, *residual, weight, bias, *rest)
        if running_mean is not None or running_var is not None:
            _move(op, running_mean, running_var, mean, var, x, momentum)
    else:
        if half:
            running_mean, running_var = _widened(running_mean, x), _widened(running_var, x)
        if torch.is_grad_enabled() and wants_derivative(x, *residual, weight, bias):
            # A backward pass will read them: a later batch must not change this gradient.
            running_mean, running_var = running_mean.clone(), running_var.clone()  # type: ignore[union-attr]
        y = kernels.eval(x, *residual, running_mean, running_var, weight, bias, *rest)
    return y if x is input else y.reshape(input.shape)


def _check(
    op: str,
    input: Any,
    per_channel: tuple[Any, ...],
    training: bool,
    momentum: Any,
    eps: Any,
    algorithm: Any,
) -> None:
    floating(op, input)
    _shapes.number(op, "momentum", momentum)
    eps = _shapes.number(op, "eps", eps)
    for name, t in zip(_PER_CHANNEL, per_channel, strict=True):
        if t is not None:
            _typed(op, name, t, input)
    sizes = [None if t is None else t.shape for t in per_channel]
    _shapes.batch_norm(op, input.shape, training, eps, *sizes)
    algorithm_name(op, algorithm)


def _residual(op: str, residual: Tensor, input: Tensor) -> Tensor:
    if residual.shape != input.shape or residual.dtype != input.dtype:
        raise _shapes.ShapeError(
            f"{op}: residual must have input's shape {tuple(input.shape)} and dtype {input.dtype},"
            f" got {tuple(residual.shape)} and {residual.dtype}"
        )
    return residual


def _typed(op: str, name: str, t: Any, input: Tensor) -> None:
    """Refuses what is given per channel, of a wrong type, dtype or device."""
    tensor(op, name, t)
    if t.dtype != input.dtype and t.dtype != _batch_norm.stats_dtype(input):
        dtypes = dict.fromkeys((_batch_norm.stats_dtype(input), input.dtype))
        allowed = " or ".join(str(d) for d in dtypes)
        raise _shapes.ShapeError(
            f"{op}: {name} must be {allowed} for an input of {input.dtype}, got {t.dtype}"
        )
    if not (t.is_cpu and input.is_cpu) and t.device != input.device:
        raise _shapes.ShapeError(
            f"{op}: {name} must be on input's device {input.device}, got {t.device}"
        )


def _move(
    op: str,
    running_mean: Any,
    running_var: Any,
    mean: Tensor,
    var: Tensor,
    x: Tensor,
    momentum: float,
) -> None:
    """Moves the running statistics towards those of the batch x, unless that is empty."""
    n, _, h, w = x.shape
    if n > 0 and running.moved(running_mean, running_var, mean, var, n * h * w, momentum):
        return
    for name, t in (("running_mean", running_mean), ("running_var", running_var)):
        _typed(op, name, t, x)
        _shapes.channels(op, name, t.shape, x.shape)
    if n > 0:
        running.update(running_mean, running_var, mean, var, n * h * w, momentum)


def _widened(t: Tensor | None, x: Tensor) -> Tensor | None:
    """What is given per channel in x's dtype, in that of the sums; the kernels refuse any other."""
    return t if t is None or t.dtype != x.dtype else t.to(_batch_norm.stats_dtype(x))


def _as_images(input: Tensor) -> Tensor:
    """(N, C, ...) as (N, C, H, W) with the same values per channel."""
    if input.dim() == 4:
        return input
    if input.dim() == 2:
        return input[:, :, None, None]
    if input.dim() == 3:
        return input.contiguous().unsqueeze(2)
    return input.flatten(2, -2)
