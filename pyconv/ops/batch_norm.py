"""Batch normalisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyconv import _shapes
from pyconv._register import batch_norm as _batch_norm
from pyconv._register import batch_norm_relu as _batch_norm_relu
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
    per_channel = (running_mean, running_var, weight, bias)
    return _normalise(
        "batch_norm", input, None, per_channel, training, momentum, eps, algorithm, _batch_norm
    )


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
    op = "batch_norm_relu"
    same_dtype(op, input, residual=residual)
    if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
        raise _shapes.ShapeError(
            f"{op}: residual must have input's shape {tuple(input.shape)} and dtype {input.dtype},"
            f" got {tuple(residual.shape)} and {residual.dtype}"
        )
    ceiling = _shapes.number(op, "ceiling", ceiling)
    if not ceiling > 0:
        raise ValueError(f"{op}: ceiling must be above 0, got {ceiling}")
    per_channel = (running_mean, running_var, weight, bias)
    rest = (per_channel, training, momentum, eps, algorithm)
    return _normalise(op, input, residual, *rest, _batch_norm_relu, ceiling)


def _normalise(
    op: str,
    input: Tensor,
    residual: Tensor | None,
    per_channel: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    training: bool,
    momentum: float,
    eps: float,
    algorithm: str | None,
    kernels: Any,
    ceiling: float = math.inf,
) -> Tensor:
    """Checks the arguments of `op`, calls one of its two kernels, moves the running statistics."""
    floating(op, input)
    momentum, eps = _shapes.number(op, "momentum", momentum), _shapes.number(op, "eps", eps)
    dtype = _batch_norm.stats_dtype(input)
    sizes = [
        None if t is None else _size(op, name, t, input, dtype)
        for name, t in zip(_PER_CHANNEL, per_channel, strict=True)
    ]
    values = _shapes.batch_norm(op, input.shape, training, eps, *sizes)
    algorithm = algorithm_name(op, algorithm)

    x = _as_images(input)
    operands: tuple[Tensor | None, ...] = (x,)
    rest: tuple[Any, ...] = (eps, algorithm)
    if kernels is _batch_norm_relu:
        operands = (x, None if residual is None else _as_images(residual))
        rest = (eps, ceiling, algorithm)
    running_mean, running_var, weight, bias = per_channel
    weight = weight if weight is None or weight.dtype == dtype else weight.to(dtype)
    bias = bias if bias is None or bias.dtype == dtype else bias.to(dtype)
    if training:
        y, mean, var = kernels.train(*operands, weight, bias, *rest)
        if running_mean is not None and running_var is not None and values > 0:
            _batch_norm.update(running_mean, running_var, mean, var, values, momentum)
    else:
        assert running_mean is not None
        assert running_var is not None
        # Copies where a backward pass may read them: a later batch must not change this gradient.
        copy = torch.is_grad_enabled()
        mean, var = (
            t if t.dtype == dtype and not copy else t.to(dtype, copy=copy)
            for t in (running_mean, running_var)
        )
        y = kernels.eval(*operands, mean, var, weight, bias, *rest)
    return y if y.dim() == input.dim() else y.reshape(input.shape)


def _size(op: str, name: str, t: Any, input: Tensor, dtype: torch.dtype) -> torch.Size:
    """The shape of what is given per channel, once its type, dtype and device are right."""
    tensor(op, name, t)
    if t.dtype != dtype and t.dtype != input.dtype:
        allowed = " or ".join(str(d) for d in dict.fromkeys((dtype, input.dtype)))
        raise _shapes.ShapeError(
            f"{op}: {name} must be {allowed} for an input of {input.dtype}, got {t.dtype}"
        )
    if not (t.is_cpu and input.is_cpu) and t.device != input.device:
        raise _shapes.ShapeError(
            f"{op}: {name} must be on input's device {input.device}, got {t.device}"
        )
    return t.shape


def _as_images(input: Tensor) -> Tensor:
    """(N, C, ...) as (N, C, H, W) with the same values per channel."""
    if input.dim() == 4:
        return input
    if input.dim() == 2:
        return input[:, :, None, None]
    if input.dim() == 3:
        return input.contiguous().unsqueeze(2)
    return input.flatten(2, -2)
