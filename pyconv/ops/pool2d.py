"""Max and average pooling, adaptive pooling, and unpooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyconv import _pool_shapes
from pyconv._register import avg_pool2d as _avg_pool2d
from pyconv._register import pool2d as _pool2d
from pyconv._shapes import ShapeError, pair
from pyconv.ops._check import algorithm_name, batched, floating, tensor

# As everywhere in pyconv.ops: a kernel refuses what does not fit before it touches anything, and
# only then do the checks below look for the words.


def _images(input: Tensor) -> Tensor:
    return input.unsqueeze(0) if input.dim() == 3 else input


def _check_pool(
    op: str,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    algorithm: Any,
) -> None:
    floating(op, input)
    kernel, step, pad = _pool_shapes.window(op, kernel_size, stride, padding)
    dilation = pair(op, "dilation", dilation)
    _pool_shapes.pool2d(op, batched(op, input).shape, kernel, step, pad, dilation, ceil_mode)
    algorithm_name(op, algorithm)


def _check_adaptive(op: str, input: Any, output_size: Any, algorithm: Any) -> None:
    floating(op, input)
    _pool_shapes.adaptive(op, batched(op, input).shape, output_size)
    algorithm_name(op, algorithm)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algorithm: str | None = None,
) -> Any:
    """Max pooling, equivalent to torch.nn.functional.max_pool2d.

        y[n,c,oh,ow] = max over kh, kw of x[n, c, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW]

    over the pixels inside the image: padding is -inf. The first of equal values wins, in row-major
    order; NaN propagates.

    Args:
        input: (N, C, IH, IW), or (C, IH, IW) for one image; N may be 0.
        kernel_size: int or (KH, KW).
        stride: pixels between windows, int or (SH, SW); None is kernel_size.
        padding: -inf added on each side, int or (PH, PW), at most half of kernel_size.
        dilation: pixels between the pixels of a window, int or (DH, DW).
        ceil_mode: round the output size up, but drop a window that would start beyond the image.
        return_indices: also return where each maximum stands.
        algorithm: a name of pyconv.algorithms("max_pool2d") to force that kernel, forward and
            backward; None lets the list choose.

    Returns:
        (N, C, OH, OW), OH = floor((IH + 2*PH - DH*(KH-1) - 1) / SH) + 1; channels_last if input is.
        With return_indices also int64 offsets ih*IW + iw into the plane of each image and channel;
        -1 for a window whose dilation steps over the whole image.

    Raises:
        ShapeError: (a ValueError and a RuntimeError) naming the argument that does not fit.
        ValueError: the forced algorithm cannot run, and why.
        TypeError: an argument of the wrong type.

    Gradients are deterministic: a pixel adds up the windows it is the maximum of in a fixed order.
    """
    op = "max_pool2d"
    try:
        x = _images(input)
        (kh, kw), (sh, sw), (ph, pw) = _pool_shapes.window(op, kernel_size, stride, padding)
        dh, dw = pair(op, "dilation", dilation)
        window = (kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode)
        if return_indices:
            y, indices = _pool2d.max_pool(x, *window, algorithm or "")
        else:
            y = _pool2d.maxima(x, *window, algorithm or "")
    except Exception:
        _check_pool(op, input, kernel_size, stride, padding, dilation, ceil_mode, algorithm)
        raise
    if x is not input:
        y, indices = y.squeeze(0), indices.squeeze(0) if return_indices else None
    return (y, indices) if return_indices else y


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """Average pooling, equivalent to torch.nn.functional.avg_pool2d.

        y[n,c,oh,ow] = (sum over kh, kw of x[n, c, oh*SH - PH + kh, ow*SW - PW + kw]) / divisor

    Args:
        input, kernel_size, stride, ceil_mode: as max_pool2d.
        padding: zeros added on each side, int or (PH, PW), at most half of kernel_size.
        count_include_pad: divisor counts these zeros too (but never what a window of ceil_mode
            reaches beyond them).
        divisor_override: divide by this int instead; not zero.
        algorithm: a name of pyconv.algorithms("avg_pool2d") to force that kernel, forward and
            backward; None lets the list choose.

    Returns:
        (N, C, OH, OW), OH = floor((IH + 2*PH - KH) / SH) + 1; channels_last if input is. bfloat16
        and float16 sum in float32.

    Raises:
        ShapeError, ValueError, TypeError: as max_pool2d.

    Source: LeCun et al., Proc. IEEE 86(11), 1998, section II.B.
    """
    op = "avg_pool2d"
    divisor = 0 if divisor_override is None else _pool_shapes.divisor(op, divisor_override)
    try:
        x = _images(input)
        (kh, kw), (sh, sw), (ph, pw) = _pool_shapes.window(op, kernel_size, stride, padding)
        y = _avg_pool2d.avg(
            x, kh, kw, sh, sw, ph, pw, ceil_mode, count_include_pad, divisor, algorithm or ""
        )
    except Exception:
        _check_pool(op, input, kernel_size, stride, padding, 1, ceil_mode, algorithm)
        raise
    return y if x is input else y.squeeze(0)


def adaptive_max_pool2d(
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
    *,
    algorithm: str | None = None,
) -> Any:
    """Max pooling to a given size, equivalent to torch.nn.functional.adaptive_max_pool2d.

    Output row oh is the maximum over the rows floor(oh*IH/OH) to ceil((oh+1)*IH/OH) - 1, and so for
    columns: the windows cover the image, may overlap, and also enlarge it (OH > IH).

    Args:
        input: (N, C, IH, IW), or (C, IH, IW) for one image; N may be 0.
        output_size: int, or (OH, OW), each an int >= 0 or None for the input's size.
        return_indices: also return where each maximum stands, as max_pool2d.
        algorithm: a name of pyconv.algorithms("adaptive_max_pool2d") to force that kernel in the
            forward pass; None lets the list choose.

    Raises:
        ShapeError, ValueError, TypeError: as max_pool2d.
    """
    op = "adaptive_max_pool2d"
    try:
        x = _images(input)
        oh, ow = _pool_shapes.adaptive(op, x.shape, output_size)
        y, indices = _pool2d.adaptive_max(x, oh, ow, algorithm or "")
    except Exception:
        _check_adaptive(op, input, output_size, algorithm)
        raise
    if x is not input:
        y, indices = y.squeeze(0), indices.squeeze(0)
    return (y, indices) if return_indices else y


def adaptive_avg_pool2d(input: Tensor, output_size: Any, *, algorithm: str | None = None) -> Tensor:
    """Average pooling to a given size, equivalent to torch.nn.functional.adaptive_avg_pool2d.

    The mean over the windows of adaptive_max_pool2d, each divided by its own number of pixels;
    output_size 1 is global average pooling (Lin et al., Network in network, arXiv:1312.4400).

    Args, Raises: as adaptive_max_pool2d, but algorithm forces both passes.
    """
    op = "adaptive_avg_pool2d"
    try:
        x = _images(input)
        oh, ow = _pool_shapes.adaptive(op, x.shape, output_size)
        y = _avg_pool2d.adaptive_avg(x, oh, ow, algorithm or "")
    except Exception:
        _check_adaptive(op, input, output_size, algorithm)
        raise
    return y if x is input else y.squeeze(0)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """Puts maxima back where they stood, equivalent to torch.nn.functional.max_unpool2d.

        y[n, c, indices[n,c,h,w]] = x[n,c,h,w], zero elsewhere; of equal indices the last wins

    Args:
        input: (N, C, H, W), or (C, H, W) for one image; N may be 0.
        indices: int64 of input's shape, offsets into the output's plane as max_pool2d gives them.
        kernel_size, stride, padding: of that max pooling.
        output_size: (OH, OW) or a whole shape; by default (H-1)*SH - 2*PH + KH, and less than one
            stride away from that.
        algorithm: a name of pyconv.algorithms("max_unpool2d") to force that kernel.

    Raises:
        ShapeError, TypeError: as max_pool2d.
        ValueError: an index outside the output's plane.

    Source: Zeiler and Fergus, arXiv:1311.2901, section 2.1.
    """
    op = "max_unpool2d"
    floating(op, input)
    tensor(op, "indices", indices)
    if indices.dtype != torch.int64:
        raise ShapeError(f"{op}: indices must be int64, got {indices.dtype}")
    x, at = batched(op, input), batched(op, indices)
    window = _pool_shapes.window(op, kernel_size, stride, padding)
    oh, ow = _pool_shapes.unpool(op, x.shape, at.shape, *window, output_size)
    y = _pool2d.unpool(x, at, oh, ow, algorithm_name(op, algorithm))
    return y if x is input else y.squeeze(0)
