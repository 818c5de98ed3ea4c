"""Pooling: tables say which pixels each window sees; every operator reads or writes through them.

Source: LeCun et al., Proc. IEEE 86(11), 1998, section II.B (average pooling); Zeiler and Fergus,
Visualizing and understanding convolutional networks, arXiv:1311.2901, section 2.1 (unpooling).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyconv.reference._common import format_of, wide


class _Axis:
    """pixel[o, k]: the k-th pixel of window o; seen[o, k]: whether it is one; count[o]: how many
    pixels an average counts, padding included if asked."""

    def __init__(self, pixel: Tensor, seen: Tensor, count: Tensor) -> None:
        self.pixel, self.seen, self.count = pixel * seen, seen, count


def _plain(
    size: int,
    out: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int = 1,
    pad: bool = False,
) -> _Axis:
    """Window o starts at o*stride - padding; what it reaches past the padding never counts."""
    pixel = torch.arange(out)[:, None] * stride - padding + torch.arange(kernel) * dilation
    seen = (pixel >= 0) & (pixel < size)
    counted = pixel < size + padding if pad else seen
    return _Axis(pixel, seen, counted.sum(1))


def _adaptive(size: int, out: int) -> _Axis:
    """Window o covers [floor(o*size/out), ceil((o+1)*size/out))."""
    start = [o * size // out for o in range(out)]
    stop = [-(-(o + 1) * size // out) for o in range(out)]
    longest = max((b - a for a, b in zip(start, stop, strict=True)), default=1)
    pixel = torch.tensor(start, dtype=torch.int64)[:, None] + torch.arange(longest)
    seen = pixel < torch.tensor(stop, dtype=torch.int64)[:, None]
    return _Axis(pixel, seen, seen.sum(1))


def _offsets(h: _Axis, w: _Axis, width: int) -> tuple[Tensor, Tensor]:
    """(OH, OW, KH*KW): the pixel's offset ih*IW + iw in the plane, and whether there is one."""
    offset = (h.pixel * width)[:, None, :, None] + w.pixel[None, :, None, :]
    seen = h.seen[:, None, :, None] & w.seen[None, :, None, :]
    return offset.flatten(2), seen.flatten(2)


def _windows(x: Tensor, h: _Axis, w: _Axis, nothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """What each window sees (N, C, OH, OW, KH*KW), `nothing` where no pixel is; offsets; seen."""
    offset, seen = (t.to(x.device) for t in _offsets(h, w, x.shape[3]))
    return wide(x).flatten(2)[..., offset].masked_fill(~seen, nothing), offset, seen


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows on an axis; ceil_mode drops a last one that would start beyond the image."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    out = -(-room // stride) + 1
    return out - 1 if (out - 1) * stride >= size + padding else out


def _dense(t: Tensor, like: Tensor, channels_last: bool | None = None) -> Tensor:
    """A copy in like's dtype, of exactly the strides of channels_last if said, or if like is."""
    if channels_last is None:
        format = format_of(like)
    else:
        format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(t, dtype=like.dtype, memory_format=format).copy_(t)


# --- maxima


def _max(x: Tensor, h: _Axis, w: _Axis) -> tuple[Tensor, Tensor]:
    """The first of equals in row-major order, the last NaN if there is one; -1 for no pixel."""
    value, offset, seen = _windows(x, h, w, float("-inf"))
    taps = value.shape[-1]
    nan = value.isnan()
    last_nan = taps - 1 - nan.flip(-1).int().argmax(-1)
    is_best = (value == value.amax(-1, keepdim=True)) & seen
    tap = torch.where(nan.any(-1), last_nan, is_best.int().argmax(-1))[..., None]
    y = value.gather(-1, tap)[..., 0]
    index = offset.expand_as(value).gather(-1, tap)[..., 0].masked_fill(~seen.any(-1), -1)
    return _dense(y, x), torch.empty_like(index, memory_format=format_of(x)).copy_(index)


def max_pool2d(
    x: Tensor,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    ceil_mode: bool,
    algorithm: str,
) -> tuple[Tensor, Tensor]:
    """y[n,c,oh,ow] = max over kh, kw of x[n, c, oh*sh-ph+kh*dh, ow*sw-pw+kw*dw]; its ih*IW + iw."""
    ih, iw = x.shape[2:]
    h = _plain(ih, _out(ih, kh, sh, ph, dh, ceil_mode), kh, sh, ph, dh)
    w = _plain(iw, _out(iw, kw, sw, pw, dw, ceil_mode), kw, sw, pw, dw)
    return _max(x, h, w)


def max_pool2d_bwd(
    dy: Tensor,
    indices: Tensor,
    ih: int,
    iw: int,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    channels_last: bool,
    algorithm: str,
) -> Tensor:
    """dx[index] += dy: the windows are not needed to say it."""
    return adaptive_max_pool2d_bwd(dy, indices, ih, iw, channels_last, algorithm)


def max_pool2d_taps(
    x: Tensor,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    ceil_mode: bool,
    algorithm: str,
) -> tuple[Tensor, Tensor]:
    """As max_pool2d; instead of indices, taps kh*KW + kw in a byte."""
    y, indices = max_pool2d(x, kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, algorithm)
    iw = x.shape[3]
    row = torch.arange(y.shape[2], device=x.device)[:, None] * sh - ph
    column = torch.arange(y.shape[3], device=x.device) * sw - pw
    return y, ((indices // iw - row) * kw + indices % iw - column).to(torch.uint8)


def max_pool2d_taps_bwd(
    dy: Tensor,
    taps: Tensor,
    ih: int,
    iw: int,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    channels_last: bool,
    algorithm: str,
) -> Tensor:
    """dx += dy where the taps say."""
    tap = taps.long()
    row = torch.arange(taps.shape[2], device=dy.device)[:, None] * sh - ph + tap // kw
    column = torch.arange(taps.shape[3], device=dy.device) * sw - pw + tap % kw
    return adaptive_max_pool2d_bwd(dy, row * iw + column, ih, iw, channels_last, algorithm)


def adaptive_max_pool2d(x: Tensor, oh: int, ow: int, algorithm: str) -> tuple[Tensor, Tensor]:
    """The same over the windows [floor(o*I/O), ceil((o+1)*I/O)) of each axis."""
    return _max(x, _adaptive(x.shape[2], oh), _adaptive(x.shape[3], ow))


def adaptive_max_pool2d_bwd(
    dy: Tensor, indices: Tensor, ih: int, iw: int, channels_last: bool, algorithm: str
) -> Tensor:
    """dx[n,c,index] += dy[n,c,oh,ow], for any indices; -1 points nowhere."""
    dx = wide(dy).new_zeros(*dy.shape[:2], ih * iw)
    dx = dx.scatter_add(
        2, indices.clamp(min=0).flatten(2), wide(dy).masked_fill(indices < 0, 0).flatten(2)
    )
    return _dense(dx.unflatten(2, (ih, iw)), dy, channels_last)


# --- unpooling


def max_unpool2d(x: Tensor, indices: Tensor, oh: int, ow: int, algorithm: str) -> Tensor:
    """y[n,c,index] = x[n,c,h,w], zero elsewhere; of equal indices the last wins."""
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < oh * ow:
        raise ValueError(f"max_unpool2d: indices must lie in a plane of {oh} x {ow} pixels")
    y = x.new_zeros(*x.shape[:2], oh * ow).scatter(2, indices.flatten(2), x.flatten(2))
    return _dense(y.unflatten(2, (oh, ow)), x)


def max_unpool2d_bwd(dy: Tensor, indices: Tensor, algorithm: str) -> Tensor:
    """dx[n,c,h,w] = dy[n,c,index], zero where index is -1."""
    found = dy.flatten(2).gather(2, indices.clamp(min=0).flatten(2)).view(indices.shape)
    return _dense(found.masked_fill(indices < 0, 0), dy)


# --- averages


def _avg(x: Tensor, h: _Axis, w: _Axis, divisor: int) -> Tensor:
    value, _, _ = _windows(x, h, w, 0.0)
    count = h.count[:, None] * w.count
    return _dense(value.sum(-1) / (divisor or count.to(x.device)), x)


def _spread(
    dy: Tensor, h: _Axis, w: _Axis, divisor: int, ih: int, iw: int, channels_last: bool
) -> Tensor:
    offset, seen = (t.to(dy.device) for t in _offsets(h, w, iw))
    count = h.count[:, None] * w.count
    share = wide(dy) / (divisor or count.to(dy.device))
    share = share[..., None].expand(*dy.shape, offset.shape[2]).masked_fill(~seen, 0)
    dx = share.new_zeros(*dy.shape[:2], ih * iw).index_add(2, offset.flatten(), share.flatten(2))
    return _dense(dx.unflatten(2, (ih, iw)), dy, channels_last)


def avg_pool2d(
    x: Tensor,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
    algorithm: str,
) -> Tensor:
    """y[n,c,oh,ow] = (sum over kh, kw of x[n, c, oh*sh-ph+kh, ow*sw-pw+kw]) / divisor.

    A divisor of 0 stands for the number of pixels counted.
    """
    ih, iw = x.shape[2:]
    h = _plain(ih, _out(ih, kh, sh, ph, 1, ceil_mode), kh, sh, ph, pad=count_include_pad)
    w = _plain(iw, _out(iw, kw, sw, pw, 1, ceil_mode), kw, sw, pw, pad=count_include_pad)
    return _avg(x, h, w, divisor)


def avg_pool2d_bwd(
    dy: Tensor,
    ih: int,
    iw: int,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    count_include_pad: bool,
    divisor: int,
    channels_last: bool,
    algorithm: str,
) -> Tensor:
    """dx[n,c,ih,iw] = sum of dy[n,c,oh,ow] / divisor over the windows that hold (ih, iw)."""
    h = _plain(ih, dy.shape[2], kh, sh, ph, pad=count_include_pad)
    w = _plain(iw, dy.shape[3], kw, sw, pw, pad=count_include_pad)
    return _spread(dy, h, w, divisor, ih, iw, channels_last)


def adaptive_avg_pool2d(x: Tensor, oh: int, ow: int, algorithm: str) -> Tensor:
    """The mean over the windows [floor(o*I/O), ceil((o+1)*I/O)) of each axis."""
    return _avg(x, _adaptive(x.shape[2], oh), _adaptive(x.shape[3], ow), 0)


def adaptive_avg_pool2d_bwd(
    dy: Tensor, ih: int, iw: int, channels_last: bool, algorithm: str
) -> Tensor:
    h, w = _adaptive(ih, dy.shape[2]), _adaptive(iw, dy.shape[3])
    return _spread(dy, h, w, 0, ih, iw, channels_last)
