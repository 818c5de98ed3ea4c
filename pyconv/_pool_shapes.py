"""Sizes of pooling, and every error a person can make there: the pooling half of pyconv._shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyconv._shapes import ShapeError, at_least, image, integer, pair

Pair = tuple[int, int]


def window(op: str, kernel: Any, stride: Any, padding: Any) -> tuple[Pair, Pair, Pair]:
    """kernel, stride and padding as pairs; a stride of None or () is the kernel."""
    kernel = pair(op, "kernel_size", kernel)
    default = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    return kernel, kernel if default else pair(op, "stride", stride), pair(op, "padding", padding)


def pool_output(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """floor or ceil of (size + 2*padding - dilation*(kernel-1) - 1) / stride, plus 1.

    In ceil mode a last window that would start in the padding past the end is dropped.
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    out = (room + stride - 1) // stride + 1
    return out - 1 if (out - 1) * stride >= size + padding else out


def pool2d(
    op: str,
    x: Sequence[int],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
) -> tuple[int, int, int, int]:
    """Output size (N, C, OH, OW) of a pooling, or the error that says why there is none."""
    image(op, x)
    at_least(op, "kernel_size", kernel, 1)
    at_least(op, "stride", stride, 1)
    at_least(op, "padding", padding, 0)
    at_least(op, "dilation", dilation, 1)
    if padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2:
        raise ShapeError(
            f"{op}: pad should be smaller than or equal to half of kernel size,"
            f" got padding {padding} with kernel_size {kernel}"
        )
    oh, ow = (
        pool_output(x[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in (0, 1)
    )
    if oh < 1 or ow < 1:
        reach = tuple(dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1))
        padded = tuple(x[2 + i] + 2 * padding[i] for i in (0, 1))
        raise ShapeError(
            f"{op}: Output size is too small: the window reaches over {reach}"
            f" (dilation * (kernel_size - 1) + 1), the padded input is {padded}"
        )
    return x[0], x[1], oh, ow


def divisor(op: str, value: Any) -> int:
    """divisor_override as the kernels take it: 0 where the window is to be counted."""
    if value is None:
        return 0
    value = integer(op, "divisor_override", value)
    if value == 0:
        raise ShapeError(f"{op}: divisor_override must be not zero, or None to count the window")
    return value


def adaptive(op: str, x: Sequence[int], output_size: Any) -> Pair:
    """(OH, OW) from an int or from two, each an int or None for the input's size."""
    image(op, x)
    if isinstance(output_size, Sequence) and not isinstance(output_size, str):
        if len(output_size) != 2:
            raise ShapeError(
                f"{op}: output_size must be an int or two, each an int or None,"
                f" got {tuple(output_size)}"
            )
        oh, ow = (
            x[2 + i] if output_size[i] is None else integer(op, "output_size", output_size[i])
            for i in (0, 1)
        )
    else:
        oh = ow = integer(op, "output_size", output_size)
    size = oh, ow
    at_least(op, "output_size", size, 0)
    return size


def unpool(
    op: str,
    x: Sequence[int],
    indices: Sequence[int],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Any,
) -> Pair:
    """(OH, OW) of an unpooling: (size-1)*stride - 2*padding + kernel, or the size that was asked
    for, if a pooling with this window could have come from it."""
    image(op, x)
    if tuple(indices) != tuple(x):
        raise ShapeError(
            f"{op}: indices must have input's shape {tuple(x)}, got shape {tuple(indices)}"
        )
    at_least(op, "kernel_size", kernel, 1)
    at_least(op, "stride", stride, 1)
    at_least(op, "padding", padding, 0)
    default = tuple((x[2 + i] - 1) * stride[i] - 2 * padding[i] + kernel[i] for i in (0, 1))
    if output_size is None:
        size = default
    else:
        if not isinstance(output_size, Sequence) or len(output_size) not in (2, 4):
            raise ShapeError(
                f"{op}: output_size must be None, (OH, OW) or a whole shape (N, C, OH, OW),"
                f" got {output_size}"
            )
        size = tuple(integer(op, "output_size", value) for value in output_size[-2:])
        for i in (0, 1):
            least, most = default[i] - stride[i] + 1, default[i] + stride[i] - 1
            if not least <= size[i] <= most:
                raise ShapeError(
                    f"{op}: output_size must be {least} to {most} in {('height', 'width')[i]}"
                    f" for input of shape {tuple(x)}, kernel_size {kernel}, stride {stride} and"
                    f" padding {padding}, got {size}"
                )
    if size[0] < 1 or size[1] < 1:
        raise ShapeError(
            f"{op}: the output would be {size}; padding {padding} takes away more than there is"
        )
    return size[0], size[1]
