"""Sizes, and every error a person can make: pure integers, no tensors.

Used by pyconv.ops before anything is touched and by the fake kernels, so that a mistake reads the
same in eager code, under torch.compile and on the meta device. Each message names the argument,
what was given and what is allowed.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any


class ShapeError(ValueError, RuntimeError):
    """An argument that cannot be. torch raises ValueError for some of these mistakes and
    RuntimeError for others; code written for either catches this."""


def integer(op: str, name: str, value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, (bool, float)):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    try:
        return value if hasattr(value, "node") else operator.index(value)  # a SymInt stays one
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int, got {value!r}") from None


def number(op: str, name: str, value: Any) -> float:
    if isinstance(value, (float, int)) or hasattr(value, "node"):  # a SymFloat stays one
        return value
    raise TypeError(f"{op}: {name} must be a float, got {value!r}")


def pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """(height, width) from an int, or from one or two ints as torch accepts them."""
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value  # as layers give it; what follows costs 0.5 us
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == 2:
            return integer(op, name, value[0]), integer(op, name, value[1])
        if len(value) == 1:
            return (integer(op, name, value[0]),) * 2
        raise ShapeError(f"{op}: {name} must be an int or two ints, got {tuple(value)}")
    return (integer(op, name, value),) * 2


def at_least(op: str, name: str, values: tuple[int, int], least: int) -> None:
    if values[0] < least or values[1] < least:
        raise ShapeError(f"{op}: {name} must be at least {least}, got {values}")


def image(op: str, shape: Sequence[int]) -> None:
    """A batched input: 4-D with channels and pixels; the batch may be empty."""
    if len(shape) != 4:
        raise ShapeError(
            f"{op}: input must be 4-D (N, C, H, W) or 3-D (C, H, W), got {len(shape)}-D of shape {tuple(shape)}"
        )
    if shape[1] == 0 or shape[2] == 0 or shape[3] == 0:
        raise ShapeError(
            f"{op}: input may have an empty batch but no empty channel, height or width, got shape {tuple(shape)}"
        )


def conv_output(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """floor((size + 2*padding - dilation*(kernel-1) - 1) / stride) + 1."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d_weight(op: str, weight: Sequence[int], groups: int, layout: str) -> None:
    if len(weight) != 4:
        raise ShapeError(
            f"{op}: weight must be 4-D {layout}, got {len(weight)}-D of shape {tuple(weight)}"
        )
    if 0 in tuple(weight):
        raise ShapeError(f"{op}: weight must not be empty, got shape {tuple(weight)}")
    if groups < 1:
        raise ShapeError(f"{op}: groups must be at least 1, got {groups}")
    if weight[0] % groups:
        raise ShapeError(
            f"{op}: weight's first dimension must be divisible by groups, got weight of shape"
            f" {tuple(weight)} with groups={groups}"
        )


def conv2d(
    x: Sequence[int],
    w: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: Sequence[int] | None = None,
) -> tuple[int, int, int, int]:
    """Output size (N, OC, OH, OW) of a convolution, or the error that says why there is none."""
    op = "conv2d"
    image(op, x)
    conv2d_weight(op, w, groups, "(OC, IC/groups, KH, KW)")
    at_least(op, "stride", stride, 1)
    at_least(op, "padding", padding, 0)
    at_least(op, "dilation", dilation, 1)
    if x[1] != w[1] * groups:
        raise ShapeError(
            f"{op}: Given groups={groups}, weight of size {list(w)}, expected input{list(x)} to have"
            f" {w[1] * groups} channels, but got {x[1]} channels instead"
        )
    if bias is not None and (len(bias) != 1 or bias[0] != w[0]):
        raise ShapeError(
            f"{op}: bias must have shape ({w[0]},), one value per output channel, got {tuple(bias)}"
        )
    oh = conv_output(x[2], w[2], stride[0], padding[0], dilation[0])
    ow = conv_output(x[3], w[3], stride[1], padding[1], dilation[1])
    if oh < 1 or ow < 1:
        reach = tuple(dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1))
        padded = tuple(x[2 + i] + 2 * padding[i] for i in (0, 1))
        raise ShapeError(
            f"{op}: Kernel size can't be greater than actual input size: the kernel reaches over {reach}"
            f" (dilation * (kernel - 1) + 1), the padded input is {padded}"
        )
    return x[0], w[0], oh, ow


def conv2d_residual(residual: Sequence[int], y: Sequence[int]) -> None:
    if tuple(residual) != tuple(y):
        raise ShapeError(
            f"conv2d_fused: residual must have the output's shape {tuple(y)}, got {tuple(residual)}"
        )


def conv_transpose2d(
    x: Sequence[int],
    w: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: Sequence[int] | None = None,
) -> tuple[int, int, int, int]:
    """Output size (N, OC, OH, OW), OH = (IH-1)*SH - 2*PH + DH*(KH-1) + output_padding + 1."""
    op = "conv_transpose2d"
    image(op, x)
    conv2d_weight(op, w, groups, "(IC, OC/groups, KH, KW)")
    at_least(op, "stride", stride, 1)
    at_least(op, "padding", padding, 0)
    at_least(op, "output_padding", output_padding, 0)
    at_least(op, "dilation", dilation, 1)
    if x[1] != w[0]:
        raise ShapeError(
            f"{op}: Given transposed=1, weight of size {list(w)}, expected input{list(x)} to have {w[0]} channels,"
            f" but got {x[1]} channels instead"
        )
    channels = w[1] * groups
    if bias is not None and (len(bias) != 1 or bias[0] != channels):
        raise ShapeError(
            f"{op}: bias must have shape ({channels},), one value per output channel, got {tuple(bias)}"
        )
    for i in (0, 1):
        if output_padding[i] >= max(stride[i], dilation[i]):
            raise ShapeError(
                f"{op}: output_padding must be smaller than either stride or dilation, got {output_padding} with"
                f" stride {stride} and dilation {dilation}"
            )
    size = tuple(
        (x[2 + i] - 1) * stride[i]
        - 2 * padding[i]
        + dilation[i] * (w[2 + i] - 1)
        + output_padding[i]
        + 1
        for i in (0, 1)
    )
    if size[0] < 1 or size[1] < 1:
        raise ShapeError(
            f"{op}: the output would be {size}; padding {padding} takes away more than there is"
        )
    return x[0], channels, size[0], size[1]


def same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    """F.pad's (left, right, top, bottom) for an output as large as the input; the odd zero goes last."""
    total_h, total_w = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
    return total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2


def channels(op: str, name: str, size: Sequence[int], x: Sequence[int]) -> None:
    if len(size) != 1 or size[0] != x[1]:
        raise ShapeError(
            f"{op}: {name} should contain {x[1]} elements, one per channel of input {tuple(x)},"
            f" got shape {tuple(size)}"
        )


def batch_norm(
    op: str,
    x: Sequence[int],
    training: bool,
    eps: float,
    running_mean: Sequence[int] | None,
    running_var: Sequence[int] | None,
    weight: Sequence[int] | None,
    bias: Sequence[int] | None,
) -> int:
    """Values per channel of (N, C, ...), or the error that says why it cannot be normalised."""
    if len(x) < 2:
        raise ShapeError(
            f"{op}: input must be (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W),"
            f" got {len(x)}-D of shape {tuple(x)}"
        )
    if (running_mean is None) != (running_var is None):
        raise ShapeError(
            f"{op}: running_mean and running_var must either both be None or neither be None"
        )
    if not training and running_mean is None:
        raise ShapeError(
            f"{op}: running_mean must be defined in evaluation mode, and so must running_var; got None"
        )
    for name, size in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if size is not None:
            channels(op, name, size, x)
    if eps < 0 or (training and eps == 0):
        raise ShapeError(
            f"{op}: eps must be {'positive during training' if training else 'non-negative'}, but got {eps}"
        )
    values = x[0]
    for extent in x[2:]:
        values = values * extent
    if training and values == 1:
        raise ShapeError(
            f"{op}: Expected more than 1 value per channel when training, got input size {tuple(x)}"
        )
    return values
