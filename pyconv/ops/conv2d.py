"""Convolution and transposed convolution."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from pyconv import _shapes
from pyconv._register import conv2d as _conv2d
from pyconv.ops._check import algorithm_name, batched, same_dtype


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """2-D convolution (cross-correlation), equivalent to torch.nn.functional.conv2d.

        y[n,oc,oh,ow] = bias[oc] + sum over ic, kh, kw of
            x[n, ic, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW] * weight[oc,ic,kh,kw]

    with x zero outside the image and ic, oc in one group.

    Args:
        input: (N, IC, IH, IW), or (IC, IH, IW) for one image; N may be 0.
        weight: (OC, IC/groups, KH, KW), of input's dtype.
        bias: (OC,) or None.
        stride: pixels between windows, int or (SH, SW).
        padding: zeros added on each side, int or (PH, PW); "valid" for none, "same" for an output
            as large as the input (stride 1 only; an odd zero goes right and below).
        dilation: pixels between kernel taps, int or (DH, DW).
        groups: channels are split into this many independent convolutions.
        algorithm: a name of pyconv.algorithms("conv2d") to force that kernel in all three
            directions; None lets the list choose.

    Returns:
        (N, OC, OH, OW), OH = floor((IH + 2*PH - DH*(KH-1) - 1) / SH) + 1; channels_last if input
        or weight is. float64, float32, bfloat16, float16; the last two sum in float32.

    Raises:
        ShapeError: (a ValueError and a RuntimeError) naming the argument that does not fit.
        ValueError: the forced algorithm cannot run here, and why; or there is none of that name.
        TypeError: an argument of the wrong type.

    Source: Dumoulin and Visin, A guide to convolution arithmetic, arXiv:1603.07285, section 2.
    """
    try:
        x = input.unsqueeze(0) if input.dim() == 3 else input
        sh, sw = _shapes.pair("conv2d", "stride", stride)
        dh, dw = _shapes.pair("conv2d", "dilation", dilation)
        if isinstance(padding, str):
            x, (ph, pw) = _named_padding(x, weight, padding, (sh, sw), (dh, dw))
        else:
            ph, pw = _shapes.pair("conv2d", "padding", padding)
        y = _conv2d.conv2d(x, weight, bias, sh, sw, ph, pw, dh, dw, groups, algorithm or "")
    except Exception:
        # The kernels refuse what does not fit before they touch anything; these checks find the words.
        _check_conv2d(input, weight, bias, stride, padding, dilation, groups, algorithm)
        raise
    return y if x is input or input.dim() == 4 else y.squeeze(0)


def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    ceiling: float = math.inf,
    packed: Tensor | None = None,
    algorithm: str | None = None,
) -> Tensor:
    """act(conv2d(input, weight, bias) + residual) in one pass over the output, for inference.

    act(v) is min(relu(v), ceiling) or, without relu, v; a NaN passes it, as it passes torch.relu. The
    sum is rounded to input's dtype once, at the end.

    Args:
        residual: of the output's shape and input's dtype, or None.
        relu: whether negative values become zero.
        ceiling: what no output exceeds, above 0: 6 makes the ReLU a ReLU6.
        packed: what `conv2d_pack` made of this weight, or None. It is left aside where it does not
            fit: other geometry, dtype or layout, another kernel, another weight.
        The others, and the result: as `conv2d`.

    Raises:
        RuntimeError: a gradient is wanted; there is none.
        ShapeError, ValueError, TypeError: as `conv2d`.

    Source: cuDNN's cudnnConvolutionBiasActivationForward, y = act(conv(x) + z + bias).
    """
    if ceiling != math.inf:
        _check_ceiling(ceiling, relu)
    try:
        x = input.unsqueeze(0) if input.dim() == 3 else input
        z = residual.unsqueeze(0) if residual is not None and residual.dim() == 3 else residual
        sh, sw = _shapes.pair("conv2d", "stride", stride)
        dh, dw = _shapes.pair("conv2d", "dilation", dilation)
        if isinstance(padding, str):
            x, (ph, pw) = _named_padding(x, weight, padding, (sh, sw), (dh, dw))
        else:
            ph, pw = _shapes.pair("conv2d", "padding", padding)
        geometry = (sh, sw, ph, pw, dh, dw, groups)
        y = _conv2d.conv2d_fused(
            x, weight, bias, z, relu, ceiling, *geometry, packed, algorithm or ""
        )
    except Exception:
        size = _check_conv2d(input, weight, bias, stride, padding, dilation, groups, algorithm)
        same_dtype("conv2d_fused", input, residual=residual)
        if residual is not None:
            _shapes.conv2d_residual(residual.shape, size if input.dim() == 4 else size[1:])
        raise
    return y if input.dim() == 4 else y.squeeze(0)


def _check_ceiling(ceiling: Any, relu: bool) -> None:
    if not _shapes.number("conv2d_fused", "ceiling", ceiling) > 0:
        raise ValueError(f"conv2d_fused: ceiling must be above 0, got {ceiling}")
    if not relu:
        raise ValueError(f"conv2d_fused: ceiling must be infinity without relu, got {ceiling}")


def conv2d_pack(
    input: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
) -> Tensor | None:
    """The weight in the order of the kernel that conv2d runs for inputs like this, made once.

    Returns:
        Bytes to hand to `conv2d_fused` as `packed`, valid until the weight changes; None where the
        kernel reads the weight as it is, or where packing would not pay.

    Raises:
        ShapeError, ValueError, TypeError: as `conv2d`.
    """
    try:
        x = input.unsqueeze(0) if input.dim() == 3 else input
        sh, sw = _shapes.pair("conv2d", "stride", stride)
        dh, dw = _shapes.pair("conv2d", "dilation", dilation)
        if isinstance(padding, str):
            x, (ph, pw) = _named_padding(x, weight, padding, (sh, sw), (dh, dw))
        else:
            ph, pw = _shapes.pair("conv2d", "padding", padding)
        geometry = (sh, sw, ph, pw, dh, dw, groups)
        return _conv2d.pack(x.detach(), weight.detach(), geometry, algorithm or "")
    except Exception:
        _check_conv2d(input, weight, None, stride, padding, dilation, groups, algorithm)
        raise


def _check_conv2d(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    algorithm: Any,
) -> tuple[int, int, int, int]:
    """Raises what does not fit in words, or returns the output's size."""
    op = "conv2d"
    same_dtype(op, input, weight=weight, bias=bias)
    x = batched(op, input)
    stride = _shapes.pair(op, "stride", stride)
    dilation = _shapes.pair(op, "dilation", dilation)
    groups = _shapes.integer(op, "groups", groups)
    if isinstance(padding, str):
        x, padding = _named_padding(x, weight, padding, stride, dilation)
    padding = _shapes.pair(op, "padding", padding)
    bias_shape = None if bias is None else bias.shape
    size = _shapes.conv2d(x.shape, weight.shape, stride, padding, dilation, groups, bias_shape)
    algorithm_name(op, algorithm)
    return size


def _named_padding(
    x: Tensor, weight: Tensor, padding: str, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """The image, padded where the two sides differ, and the symmetric padding left to the kernel."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise _shapes.ShapeError(
            f'conv2d: padding must be an int, two ints, "valid" or "same", got "{padding}"'
        )
    if stride != (1, 1):
        raise _shapes.ShapeError(f'conv2d: padding="same" needs stride 1, got {stride}')
    _shapes.conv2d_weight("conv2d", weight.shape, 1, "(OC, IC/groups, KH, KW)")
    left, right, top, bottom = _shapes.same_padding((weight.shape[2], weight.shape[3]), dilation)
    if left != right or top != bottom:
        x = pad(x, (0, right - left, 0, bottom - top))
    return x, (top, left)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """Transposed 2-D convolution, equivalent to torch.nn.functional.conv_transpose2d.

    The input gradient of conv2d, used as a layer: with weight w of a convolution from OC to IC
    channels,

        y[n,oc,ih*SH - PH + kh*DH, iw*SW - PW + kw*DW] += x[n,ic,ih,iw] * weight[ic,oc,kh,kw]

    summed over ic, kh, kw, ih, iw, plus bias[oc].

    Args:
        input: (N, IC, IH, IW) or (IC, IH, IW).
        weight: (IC, OC/groups, KH, KW), of input's dtype.
        bias: (OC,) or None.
        stride, padding, dilation: of the convolution this transposes; int or (height, width).
        output_padding: rows and columns added at the end, smaller than stride or dilation.
        groups: channels are split into this many independent convolutions.
        algorithm: forces a kernel of pyconv.algorithms("conv2d").

    Returns:
        (N, OC, OH, OW), OH = (IH-1)*SH - 2*PH + DH*(KH-1) + output_padding + 1.

    Raises:
        ShapeError, TypeError: as conv2d.

    Source: Dumoulin and Visin, arXiv:1603.07285, section 4.
    """
    op = "conv_transpose2d"
    same_dtype(op, input, weight=weight, bias=bias)
    x = batched(op, input)
    stride = _shapes.pair(op, "stride", stride)
    padding = _shapes.pair(op, "padding", padding)
    output_padding = _shapes.pair(op, "output_padding", output_padding)
    dilation = _shapes.pair(op, "dilation", dilation)
    groups = _shapes.integer(op, "groups", groups)
    size = _shapes.conv_transpose2d(
        x.shape,
        weight.shape,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        None if bias is None else bias.shape,
    )
    # Rows of output_padding from the stride on are beyond every window: the kernel leaves them to pad.
    below, right = (max(0, output_padding[i] - (stride[i] - 1)) for i in (0, 1))
    seen = (*size[:2], size[2] - below, size[3] - right)
    y = _conv2d.transposed(
        x, weight, seen, stride, padding, dilation, groups, algorithm_name(op, algorithm)
    )
    if below or right:
        y = pad(y, (0, right, 0, below))
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return y if x.dim() == input.dim() else y.squeeze(0)
