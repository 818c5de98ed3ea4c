"""conv2d and its two gradients: three bilinear maps, each the gradient of the others.

    y  = conv2d(x, w)               dx = conv2d_bwd_input(dy, w)      dw = conv2d_bwd_weight(dy, x)

so that the gradient of any of them, to any order, is one of the three again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyconv import _native, _shapes
from pyconv._register._core import (
    declare,
    derivatives_are_off,
    empty,
    format_of,
    is_channels_last,
    memory_format,
    register,
    register_for_inference,
)

# geometry = (sh, sw, ph, pw, dh, dw, groups)
_NONE = (None,) * 7


def _fake_fwd(x, w, b, sh, sw, ph, pw, dh, dw, groups, algorithm):
    bias = None if b is None else b.shape
    size = _shapes.conv2d(x.shape, w.shape, (sh, sw), (ph, pw), (dh, dw), groups, bias)
    return empty(x, size, memory_format(x, w))


def _fake_fused(
    x, w, b, residual, relu, ceiling, sh, sw, ph, pw, dh, dw, groups, packed, algorithm
):
    y = _fake_fwd(x, w, b, sh, sw, ph, pw, dh, dw, groups, algorithm)
    if residual is not None:
        _shapes.conv2d_residual(residual.shape, y.shape)
    return y


def _fake_bwd_input(dy, w, ih, iw, sh, sw, ph, pw, dh, dw, groups, channels_last, algorithm):
    return empty(dy, (dy.shape[0], w.shape[1] * groups, ih, iw), format_of(channels_last))


def _fake_bwd_weight(dy, x, kh, kw, sh, sw, ph, pw, dh, dw, groups, channels_last, algorithm):
    return empty(dy, (dy.shape[1], x.shape[1] // groups, kh, kw), format_of(channels_last))


def _fake_bwd(
    dy, x, w, ih, iw, kh, kw, sh, sw, ph, pw, dh, dw, groups, channels_last, bias, algorithm
):
    rest = (sh, sw, ph, pw, dh, dw, groups, channels_last, algorithm)
    return (
        dy.new_empty(0) if w is None else _fake_bwd_input(dy, w, ih, iw, *rest),
        dy.new_empty(0) if x is None else _fake_bwd_weight(dy, x, kh, kw, *rest),
        dy.new_empty(dy.shape[1] if bias else 0),
    )


def _save(ctx: Any, a: Tensor, b: Tensor) -> None:
    """The factors of a product; each is read only by the gradient of the other."""
    need_a, need_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(a if need_b else None, b if need_a else None)
    ctx.save_for_forward(a, b)


def _product_rule(product: Any, a: Tensor, ta, b: Tensor, tb, *rest: Any) -> list[Tensor]:
    """The terms of the tangent of product(a, b): each tangent with the other factor."""
    terms = []
    if ta is not None:
        terms.append(product(ta, b, *rest))
    if tb is not None:
        terms.append(product(a, tb, *rest))
    return terms


# --- y = conv2d(x, w) + b


def _fwd_setup(ctx: Any, inputs: tuple, y: Tensor) -> None:
    x, w = inputs[:2]
    _save(ctx, x, w)
    ctx.x_shape, ctx.w_shape, ctx.rest = x.shape, w.shape, inputs[3:]
    ctx.channels_last = is_channels_last(y)


def _fwd_backward(ctx: Any, dy: Tensor):
    x, w = ctx.saved_tensors
    need_x, need_w, need_b = needs = ctx.needs_input_grad[:3]
    image, window = ctx.x_shape[2:], ctx.w_shape[2:]
    *geometry, algorithm = ctx.rest
    on_cpu = not (dy.is_cuda or _native.emulates_cuda)
    if _bwd and on_cpu and sum(needs) > 1 and derivatives_are_off():
        rest = (*image, *window, *geometry, ctx.channels_last, need_b, algorithm)
        dx, dw, db = _bwd(dy, x, w, *rest)
        return dx if need_x else None, dw if need_w else None, db if need_b else None, *_NONE, None
    rest = (*geometry, ctx.channels_last, algorithm)
    dx = bwd_input(dy, w, *image, *rest) if need_x else None
    dw = bwd_weight(dy, x, *window, *rest) if need_w else None
    db = dy.sum((0, 2, 3)) if need_b else None
    return dx, dw, db, *_NONE, None


def _fwd_jvp(ctx: Any, tx, tw, tb, *_):
    x, w = ctx.saved_tensors
    terms = _product_rule(fwd, x, tx, w, tw, None, *ctx.rest)
    if tb is not None:
        y = terms[0] if terms else fwd(x, w, None, *ctx.rest) * 0
        terms.append(tb[:, None, None].expand_as(y))
    return sum(terms[1:], terms[0])


# --- dx = conv2d_bwd_input(dy, w)


def _bwd_input_setup(ctx: Any, inputs: tuple, dx: Tensor) -> None:
    dy, w = inputs[:2]
    _save(ctx, dy, w)
    ctx.image, ctx.window, ctx.geometry = inputs[2:4], w.shape[2:], inputs[4:11]
    ctx.channels_last, ctx.algorithm = inputs[11:]


def _bwd_input_backward(ctx: Any, g: Tensor):
    dy, w = ctx.saved_tensors
    need_dy, need_w = ctx.needs_input_grad[:2]
    ddy = fwd(g, w, None, *ctx.geometry, ctx.algorithm) if need_dy else None
    rest = (*ctx.geometry, ctx.channels_last, ctx.algorithm)
    dw = bwd_weight(dy, g, *ctx.window, *rest) if need_w else None
    return ddy, dw, None, None, *_NONE, None, None


def _bwd_input_jvp(ctx: Any, tdy, tw, *_):
    dy, w = ctx.saved_tensors
    rest = (*ctx.image, *ctx.geometry, ctx.channels_last, ctx.algorithm)
    terms = _product_rule(bwd_input, dy, tdy, w, tw, *rest)
    return sum(terms[1:], terms[0])


# --- dw = conv2d_bwd_weight(dy, x)


def _bwd_weight_setup(ctx: Any, inputs: tuple, dw: Tensor) -> None:
    dy, x = inputs[:2]
    _save(ctx, dy, x)
    ctx.image, ctx.window, ctx.geometry = x.shape[2:], inputs[2:4], inputs[4:11]
    ctx.channels_last, ctx.algorithm = inputs[11:]


def _bwd_weight_backward(ctx: Any, g: Tensor):
    dy, x = ctx.saved_tensors
    need_dy, need_x = ctx.needs_input_grad[:2]
    ddy = fwd(x, g, None, *ctx.geometry, ctx.algorithm) if need_dy else None
    rest = (*ctx.geometry, ctx.channels_last, ctx.algorithm)
    dx = bwd_input(dy, g, *ctx.image, *rest) if need_x else None
    return ddy, dx, None, None, *_NONE, None, None


def _bwd_weight_jvp(ctx: Any, tdy, tx, *_):
    dy, x = ctx.saved_tensors
    rest = (*ctx.window, *ctx.geometry, ctx.channels_last, ctx.algorithm)
    terms = _product_rule(bwd_weight, dy, tdy, x, tx, *rest)
    return sum(terms[1:], terms[0])


# --- batching: B convolutions side by side are one convolution of B * groups groups


def _batch(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The batch dimension in front, made up by expansion where there is none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_channels(t: Tensor) -> Tensor:
    """(B, N, C, H, W) -> (N, B*C, H, W)."""
    return t.transpose(0, 1).flatten(1, 2)


def _from_channels(t: Tensor, size: int) -> Tensor:
    """(N, B*C, H, W) -> (N, B, C, H, W), batched in dimension 1."""
    return t.unflatten(1, (size, t.shape[1] // size))


def _fwd_vmap(info: Any, in_dims: tuple, x, w, b, sh, sw, ph, pw, dh, dw, groups, algorithm):
    size = info.batch_size
    if in_dims[1] is None and (b is None or in_dims[2] is None):  # one weight: B*N images
        images = x.movedim(in_dims[0], 0)
        y = fwd(images.flatten(0, 1), w, b, sh, sw, ph, pw, dh, dw, groups, algorithm)
        return y.unflatten(0, (size, images.shape[1])), 0
    xs = _as_channels(_batch(x, in_dims[0], size))
    ws = _batch(w, in_dims[1], size).flatten(0, 1)
    bs = None if b is None else _batch(b, in_dims[2], size).flatten()
    y = fwd(xs, ws, bs, sh, sw, ph, pw, dh, dw, groups * size, algorithm)
    return _from_channels(y, size), 1


def _fused_vmap(info: Any, in_dims: tuple, x, w, b, residual, relu, ceiling, *rest):
    size, (*geometry, groups, _, algorithm) = info.batch_size, rest
    one_weight = in_dims[1] is None and (b is None or in_dims[2] is None)
    together = (lambda t: t.flatten(0, 1)) if one_weight else _as_channels
    xs = together(_batch(x, in_dims[0], size))
    zs = None if residual is None else together(_batch(residual, in_dims[3], size))
    if one_weight:
        y = _fused(xs, w, b, zs, relu, ceiling, *rest)
        return y.unflatten(0, (size, y.shape[0] // size)), 0
    ws = _batch(w, in_dims[1], size).flatten(0, 1)
    bs = None if b is None else _batch(b, in_dims[2], size).flatten()
    y = _fused(xs, ws, bs, zs, relu, ceiling, *geometry, groups * size, None, algorithm)
    return _from_channels(y, size), 1


def _bwd_input_vmap(info: Any, in_dims, dy, w, ih, iw, sh, sw, ph, pw, dh, dw, groups, *rest):
    size = info.batch_size
    if in_dims[1] is None:
        images = dy.movedim(in_dims[0], 0)
        dx = bwd_input(images.flatten(0, 1), w, ih, iw, sh, sw, ph, pw, dh, dw, groups, *rest)
        return dx.unflatten(0, (size, images.shape[1])), 0
    dys = _as_channels(_batch(dy, in_dims[0], size))
    ws = _batch(w, in_dims[1], size).flatten(0, 1)
    dx = bwd_input(dys, ws, ih, iw, sh, sw, ph, pw, dh, dw, groups * size, *rest)
    return _from_channels(dx, size), 1


def _bwd_weight_vmap(info: Any, in_dims, dy, x, kh, kw, sh, sw, ph, pw, dh, dw, groups, *rest):
    size = info.batch_size
    dys = _as_channels(_batch(dy, in_dims[0], size))
    xs = _as_channels(_batch(x, in_dims[1], size))
    dw_ = bwd_weight(dys, xs, kh, kw, sh, sw, ph, pw, dh, dw, groups * size, *rest)
    return dw_.unflatten(0, (size, dw_.shape[0] // size)), 0


# --- 2 * N * OC * OH * OW * IC/groups * KH * KW in every direction


def _flops(n_oc_oh_ow, ic_kh_kw) -> int:
    flops = 2
    for extent in (*n_oc_oh_ow, *ic_kh_kw):
        flops *= extent
    return flops


def _fwd_flops(x, w, b, *rest, out_shape, **_) -> int:
    return _flops(out_shape, w[1:])


def _fused_flops(x, w, b, residual, *rest, out_shape, **_) -> int:
    return _flops(out_shape, w[1:])


def _bwd_input_flops(dy, w, *rest, out_shape, **_) -> int:
    return _flops(dy, w[1:])


def _bwd_weight_flops(dy, x, *rest, out_shape, **_) -> int:
    return _flops(dy, out_shape[1:])


def _bwd_flops(dy, x, w, ih, iw, kh, kw, *rest, out_shape, **_) -> int:
    channels = w[1] if w else x[1] // rest[6] if x else 0
    return ((x is not None) + (w is not None)) * _flops(dy, (channels, kh, kw))


fwd = register(
    "conv2d",
    tensors=3,
    fake=_fake_fwd,
    setup=_fwd_setup,
    backward=_fwd_backward,
    jvp=_fwd_jvp,
    vmap=_fwd_vmap,
    flops=_fwd_flops,
    autocast=True,
)
_fused = register_for_inference(
    "conv2d_fused",
    tensors=4,
    fake=_fake_fused,
    vmap=_fused_vmap,
    flops=_fused_flops,
    instead="use the model that pyconv.fuse was given, or torch.no_grad()",
)
bwd_input = register(
    "conv2d_bwd_input",
    tensors=2,
    fake=_fake_bwd_input,
    setup=_bwd_input_setup,
    backward=_bwd_input_backward,
    jvp=_bwd_input_jvp,
    vmap=_bwd_input_vmap,
    flops=_bwd_input_flops,
    autocast=True,
)
bwd_weight = register(
    "conv2d_bwd_weight",
    tensors=2,
    fake=_fake_bwd_weight,
    setup=_bwd_weight_setup,
    backward=_bwd_weight_backward,
    jvp=_bwd_weight_jvp,
    vmap=_bwd_weight_vmap,
    flops=_bwd_weight_flops,
)

# All three at once: half the calls, one copy of a dy in another layout, and a kernel for db.
_bwd = _native.lib and declare("_conv2d_bwd", 3, _fake_bwd, _bwd_flops)._op

conv2d = fwd.under_autocast
conv2d_fused = _fused.under_autocast


def pack(x: Tensor, w: Tensor, geometry: tuple[int, ...], algorithm: str) -> Tensor | None:
    """w in the order of the kernel that would run, for conv2d_fused's `packed`; None if it has none."""
    if _native.lib is None:
        return None
    packed = torch.ops.pyconv._conv2d_pack.default(x, w, *geometry, algorithm)
    return packed if packed.numel() else None


def transposed(x, w, size, stride, padding, dilation, groups, algorithm):
    """conv_transpose2d without bias: the input gradient, with x in the place of dy."""
    last = memory_format(x, w) == torch.channels_last
    return bwd_input.under_autocast(
        x, w, size[2], size[3], *stride, *padding, *dilation, groups, last, algorithm
    )
