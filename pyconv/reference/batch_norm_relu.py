"""Batch norm, the sum with a residual, ReLU, and the gradients: a mask before batch_norm's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyconv.reference._common import clipped, format_of, wide
from pyconv.reference.batch_norm import (
    batch_norm_eval,
    batch_norm_eval_bwd,
    batch_norm_train,
    batch_norm_train_bwd,
)


def _finish(y: Tensor, residual: Tensor | None, ceiling: float, x: Tensor) -> Tensor:
    """min(relu(y + residual), ceiling), rounded once to x's dtype."""
    y = clipped(y if residual is None else y + wide(residual), ceiling)
    return y.to(x.dtype).contiguous(memory_format=format_of(x))


def batch_norm_relu_train(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    ceiling: float,
    algorithm: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = min(relu((x - mean) * r * weight + bias + residual), ceiling); also mean and biased var of x."""
    y, mean, var = batch_norm_train(wide(x), weight, bias, eps, algorithm)
    return _finish(y, residual, ceiling, x), mean, var


def batch_norm_relu_eval(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    ceiling: float,
    algorithm: str,
) -> Tensor:
    """y = min(relu((x - mean) * r * weight + bias + residual), ceiling), the statistics given."""
    y = batch_norm_eval(wide(x), mean, var, weight, bias, eps, algorithm)
    return _finish(y, residual, ceiling, x)


def passed(dy: Tensor, y: Tensor, ceiling: float) -> Tensor:
    """The gradient before a ReLU whose output is y: dy where 0 < y < ceiling. A NaN lets pass."""
    stopped = y <= 0
    if ceiling != math.inf:
        stopped = stopped | (y >= torch.full((), ceiling, dtype=y.dtype, device=y.device))
    return dy.masked_fill(stopped, 0)


def _behind_the_mask(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """g = dy where 0 < y < ceiling, else 0: dresidual = g (empty unless asked for), the others batch_norm's of g."""

    def bwd(
        dy: Tensor,
        y: Tensor,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        residual: bool,
        eps: float,
        ceiling: float,
        algorithm: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = passed(dy, y, ceiling).contiguous(memory_format=format_of(x))
        dx, dweight, dbias = backward(g, x, mean, var, weight, eps, algorithm)
        return dx, g if residual else g.new_empty(0), dweight, dbias

    return bwd


batch_norm_relu_train_bwd = _behind_the_mask(batch_norm_train_bwd)
batch_norm_relu_eval_bwd = _behind_the_mask(batch_norm_eval_bwd)
