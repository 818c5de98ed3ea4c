"""Batch norm, the sum with a residual, ReLU, and the gradients: a mask before batch_norm's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyconv.reference._common import format_of, wide
from pyconv.reference.batch_norm import (
    batch_norm_eval,
    batch_norm_eval_bwd,
    batch_norm_train,
    batch_norm_train_bwd,
)


def _finish(y: Tensor, residual: Tensor | None, x: Tensor) -> Tensor:
    """relu(y + residual), rounded once to x's dtype."""
    y = torch.relu(y if residual is None else y + wide(residual))
    return y.to(x.dtype).contiguous(memory_format=format_of(x))


def batch_norm_relu_train(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    algorithm: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = relu((x - mean) * r * weight + bias + residual); also mean and biased var of x."""
    y, mean, var = batch_norm_train(wide(x), weight, bias, eps, algorithm)
    return _finish(y, residual, x), mean, var


def batch_norm_relu_eval(
    x: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    algorithm: str,
) -> Tensor:
    """y = relu((x - mean) * r * weight + bias + residual), the statistics given."""
    return _finish(batch_norm_eval(wide(x), mean, var, weight, bias, eps, algorithm), residual, x)


def passed(dy: Tensor, y: Tensor) -> Tensor:
    """The gradient before a ReLU whose output is y: dy where y is not 0. A NaN lets pass."""
    return dy.masked_fill(y <= 0, 0)


def _behind_the_mask(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """g = dy where y > 0, else 0: dresidual = g (empty unless asked for), the others batch_norm's of g."""

    def bwd(
        dy: Tensor,
        y: Tensor,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        residual: bool,
        eps: float,
        algorithm: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = passed(dy, y).contiguous(memory_format=format_of(x))
        dx, dweight, dbias = backward(g, x, mean, var, weight, eps, algorithm)
        return dx, g if residual else g.new_empty(0), dweight, dbias

    return bwd


batch_norm_relu_train_bwd = _behind_the_mask(batch_norm_train_bwd)
batch_norm_relu_eval_bwd = _behind_the_mask(batch_norm_eval_bwd)
