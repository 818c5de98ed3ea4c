"""Batch norm and its gradients: each channel to mean 0 and variance 1, then to bias and weight^2.

Statistics are biased (divided by the number of values) and, like the parameters, one per channel:
float64 for float64 data, float32 for all other.

Source: Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167, algorithm 1 and section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyconv.reference._common import format_of, wide

_CHANNEL = (0, 2, 3)  # the dimensions a channel's values are spread over


def column(t: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1): one value per channel, beside an image."""
    return t[:, None, None]


def batch_norm_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, algorithm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y = (x - mean) * r * weight + bias with r = 1/sqrt(var + eps); also mean and biased var."""
    values = max(x.shape[0] * x.shape[2] * x.shape[3], 1)
    mean = wide(x).sum(_CHANNEL) / values
    var = (wide(x) - column(mean)).square().sum(_CHANNEL) / values
    return batch_norm_eval(x, mean, var, weight, bias, eps, algorithm), mean, var


def batch_norm_eval(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    algorithm: str,
) -> Tensor:
    """y = (x - mean) * r * weight + bias with r = 1/sqrt(var + eps), the statistics given."""
    y = (wide(x) - column(mean)) * column(torch.rsqrt(var + eps))
    if weight is not None:
        y = y * column(weight)
    if bias is not None:
        y = y + column(bias)
    return y.to(x.dtype).contiguous(memory_format=format_of(x))


def batch_norm_train_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    eps: float,
    algorithm: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dbias = sum dy, dweight = sum dy*xhat, dx = weight * r * (dy - dbias/M - xhat * dweight/M).

    xhat = (x - mean) * r, sums over the M values of a channel; mean and var are those of x.
    """
    values = max(x.shape[0] * x.shape[2] * x.shape[3], 1)
    r = torch.rsqrt(var + eps)
    xhat = (wide(x) - column(mean)) * column(r)
    dbias = wide(dy).sum(_CHANNEL)
    dweight = (wide(dy) * xhat).sum(_CHANNEL)
    dx = (wide(dy) - column(dbias / values) - xhat * column(dweight / values)) * column(r)
    if weight is not None:
        dx = dx * column(weight)
    return dx.to(x.dtype).contiguous(memory_format=format_of(x)), dweight, dbias


def batch_norm_eval_bwd(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    eps: float,
    algorithm: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """As batch_norm_train_bwd with statistics that are not of x: dx = weight * r * dy."""
    r = torch.rsqrt(var + eps)
    dbias = wide(dy).sum(_CHANNEL)
    dweight = (wide(dy) * (wide(x) - column(mean)) * column(r)).sum(_CHANNEL)
    dx = wide(dy) * column(r if weight is None else r * weight)
    return dx.to(x.dtype).contiguous(memory_format=format_of(x)), dweight, dbias
