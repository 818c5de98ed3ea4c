"""The two gradients of conv2d as functions, with the signatures of torch.nn.grad.

    y = conv2d(x, w);  dx = conv2d_input(x.shape, w, dy);  dw = conv2d_weight(x, w.shape, dy)

They run the kernels that autograd runs, and are differentiable themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyconv import _shapes
from pyconv._register import conv2d as _conv2d
from pyconv._register._core import memory_format
from pyconv.ops._check import DTYPES, algorithm_name, tensor


def conv2d_input(
    input_size: Sequence[int],
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """The gradient of conv2d with respect to its input.

        dx[n, ic, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW] += dy[n,oc,oh,ow] * weight[oc,ic,kh,kw]

    over oc, kh, kw, oh, ow.

    Args:
        input_size: (N, IC, IH, IW); grad_output does not determine it when a stride skips pixels.
        weight: (OC, IC/groups, KH, KW).
        grad_output: dy (N, OC, OH, OW), of weight's dtype.
        stride, padding, dilation, groups, algorithm: as pyconv.ops.conv2d; padding in pixels.

    Returns:
        (N, IC, IH, IW), channels_last if grad_output or weight is.

    Raises:
        ShapeError: an argument that does not fit; grad_output must be as large as conv2d's output.
    """
    op = "conv2d_input"
    _same_dtype(op, grad_output=grad_output, weight=weight)
    geometry = _geometry(
        op, input_size, weight.shape, grad_output, stride, padding, dilation, groups
    )
    last = memory_format(grad_output, weight) == torch.channels_last
    return _conv2d.bwd_input(
        grad_output, weight, *input_size[2:], *geometry, last, algorithm_name(op, algorithm)
    )


def conv2d_weight(
    input: Tensor,
    weight_size: Sequence[int],
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """The gradient of conv2d with respect to its weight.

        dw[oc,ic,kh,kw] = sum over n, oh, ow of
            dy[n,oc,oh,ow] * x[n, ic, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW]

    Args:
        input: x (N, IC, IH, IW).
        weight_size: (OC, IC/groups, KH, KW).
        grad_output: dy (N, OC, OH, OW), of input's dtype.
        stride, padding, dilation, groups, algorithm: as pyconv.ops.conv2d; padding in pixels.

    Returns:
        (OC, IC/groups, KH, KW), channels_last if grad_output or input is.

    Raises:
        ShapeError: an argument that does not fit; grad_output must be as large as conv2d's output.
    """
    op = "conv2d_weight"
    _same_dtype(op, grad_output=grad_output, input=input)
    geometry = _geometry(
        op, input.shape, weight_size, grad_output, stride, padding, dilation, groups
    )
    last = memory_format(grad_output, input) == torch.channels_last
    return _conv2d.bwd_weight(
        grad_output, input, *weight_size[2:], *geometry, last, algorithm_name(op, algorithm)
    )


def _same_dtype(op: str, **operands: Tensor) -> None:
    for name, value in operands.items():
        tensor(op, name, value)
    dtypes = {name: value.dtype for name, value in operands.items()}
    if len(set(dtypes.values())) > 1 or not set(dtypes.values()) <= set(DTYPES):
        raise _shapes.ShapeError(
            f"{op}: {' and '.join(dtypes)} must both be float64, float32, bfloat16 or float16, got"
            f" {' and '.join(map(str, dtypes.values()))}"
        )


def _geometry(
    op: str,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    grad_output: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> tuple[int, ...]:
    """(SH, SW, PH, PW, DH, DW, groups) of a convolution whose output has grad_output's shape."""
    stride = _shapes.pair(op, "stride", stride)
    padding = _shapes.pair(op, "padding", padding)
    dilation = _shapes.pair(op, "dilation", dilation)
    groups = _shapes.integer(op, "groups", groups)
    size = _shapes.conv2d(input_size, weight_size, stride, padding, dilation, groups)
    if tuple(grad_output.shape) != size:
        raise _shapes.ShapeError(
            f"{op}: grad_output must have conv2d's output shape {size}, got"
            f" {tuple(grad_output.shape)}"
        )
    return (*stride, *padding, *dilation, groups)
