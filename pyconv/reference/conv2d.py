"""Convolution and its two gradients: one shifted, strided view of the image per kernel tap.

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, arXiv:1603.07285.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyconv.reference._common import clipped, format_of, seen_by, taps, wide


def conv2d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    groups: int,
    algorithm: str,
) -> Tensor:
    """y[n,oc,oh,ow] = b[oc] + sum_{ic,kh,kw} x[n, ic, oh*sh-ph+kh*dh, ow*sw-pw+kw*dw] * w[oc,ic,kh,kw]."""
    (n, _, ih, iw), (oc, icg, kh, kw) = x.shape, w.shape
    oh = (ih + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    ow = (iw + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    image = pad(wide(x), (pw, pw, ph, ph)).unflatten(1, (groups, icg))
    weight = wide(w).unflatten(0, (groups, oc // groups))
    y = image.new_zeros(n, groups, oc // groups, oh, ow)
    for i, j in taps(kh, kw):
        seen = image[..., seen_by(i, oh, sh, dh), seen_by(j, ow, sw, dw)]
        y = y + torch.einsum("ngchw,gkc->ngkhw", seen, weight[..., i, j])
    y = y.flatten(1, 2)
    if b is not None:
        y = y + wide(b)[:, None, None]
    return y.to(x.dtype).contiguous(memory_format=format_of(x, w))


def conv2d_fused(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    ceiling: float,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    groups: int,
    packed: Tensor | None,
    algorithm: str,
) -> Tensor:
    """act(conv2d(x, w, b) + residual), rounded once; act(v) is min(relu(v), ceiling) or v."""
    bias = None if b is None else wide(b)
    y = conv2d(wide(x), wide(w), bias, sh, sw, ph, pw, dh, dw, groups, algorithm)
    if residual is not None:
        y = y + wide(residual)
    y = clipped(y, ceiling) if relu else y
    return y.to(x.dtype).contiguous(memory_format=format_of(x, w))


def conv2d_bwd_input(
    dy: Tensor,
    w: Tensor,
    ih: int,
    iw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    groups: int,
    channels_last: bool,
    algorithm: str,
) -> Tensor:
    """dx[n,ic,oh*sh-ph+kh*dh,ow*sw-pw+kw*dw] += dy[n,oc,oh,ow] * w[oc,ic,kh,kw], over oc, kh, kw, oh, ow."""
    (n, oc, oh, ow), (_, icg, kh, kw) = dy.shape, w.shape
    grad = wide(dy).unflatten(1, (groups, oc // groups))
    weight = wide(w).unflatten(0, (groups, oc // groups))
    padded = grad.new_zeros(n, groups, icg, ih + 2 * ph, iw + 2 * pw)
    for i, j in taps(kh, kw):
        padded[..., seen_by(i, oh, sh, dh), seen_by(j, ow, sw, dw)] += torch.einsum(
            "ngkhw,gkc->ngchw", grad, weight[..., i, j]
        )
    dx = padded[..., ph : ph + ih, pw : pw + iw].flatten(1, 2).to(dy.dtype)
    return dx.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def conv2d_bwd_weight(
    dy: Tensor,
    x: Tensor,
    kh: int,
    kw: int,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    groups: int,
    channels_last: bool,
    algorithm: str,
) -> Tensor:
    """dw[oc,ic,kh,kw] = sum_{n,oh,ow} dy[n,oc,oh,ow] * x[n, ic, oh*sh-ph+kh*dh, ow*sw-pw+kw*dw]."""
    (_, oc, oh, ow), ic = dy.shape, x.shape[1]
    grad = wide(dy).unflatten(1, (groups, oc // groups))
    image = pad(wide(x), (pw, pw, ph, ph)).unflatten(1, (groups, ic // groups))
    weight = grad.new_zeros(groups, oc // groups, ic // groups, kh, kw)
    for i, j in taps(kh, kw):
        seen = image[..., seen_by(i, oh, sh, dh), seen_by(j, ow, sw, dw)]
        weight[..., i, j] = torch.einsum("ngkhw,ngchw->gkc", grad, seen)
    weight = weight.flatten(0, 1).to(dy.dtype)
    return weight.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
