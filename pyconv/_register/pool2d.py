"""Pooling. With i the indices of the maxima, three linear maps carry all gradients of max pooling:

    gather  dx = dy[i]                 max_unpool2d_bwd; max pooling itself is y = x[i]
    add     dx[i] += dy                max_pool2d_bwd, adaptive_max_pool2d_bwd
    place   y[i] = x, zero elsewhere   max_unpool2d; the same as add where no two i are equal

Where nobody asks for i, windows name their maximum by its tap instead, kh*KW + kw in one byte, or
not at all. gather and add are each other's gradient. In every map an image of the batch is on its
own, so a batching rule folds into N.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyconv import _native, _pool_shapes
from pyconv._register._core import (
    declare,
    empty,
    format_of,
    is_channels_last,
    memory_format,
    register,
    wants_derivative,
)


def folded(call: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    """Batching rule of an op with `tensors` tensors: B batches of N images are one of B*N."""

    def vmap(info: Any, in_dims: tuple, *args: Any) -> Any:
        size = info.batch_size
        folded = []
        for tensor, dim in zip(args[:tensors], in_dims, strict=False):
            batched = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            images = batched.shape[1]
            folded.append(batched.flatten(0, 1))
        outputs = call(*folded, *args[tensors:])
        if isinstance(outputs, Tensor):
            return outputs.unflatten(0, (size, images)), 0
        return tuple(t.unflatten(0, (size, images)) for t in outputs), (0,) * len(outputs)

    return vmap


def one_layout(x: Tensor, y: Tensor) -> bool:
    """Whether x was read and y written as channels_last; of one channel y's strides cannot tell."""
    return is_channels_last(y) if y.shape[1] > 1 else memory_format(x) == torch.channels_last


# --- what max pooling and adaptive max pooling share


def _max_setup(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
    x, *ctx.geometry, ctx.algorithm = inputs
    y, indices = outputs
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(indices)
    ctx.save_for_forward(indices)
    ctx.ih, ctx.iw = x.shape[2:]
    ctx.channels_last = one_layout(x, y)


def _max_jvp(ctx: Any, tx: Tensor, *_: Any) -> Any:
    (indices,) = ctx.saved_tensors
    return gather(tx, indices, ""), None


def _add_setup(ctx: Any, inputs: tuple, dx: Tensor) -> None:
    _, indices, *ctx.rest = inputs
    ctx.save_for_backward(indices)
    ctx.save_for_forward(indices)


def _add_backward(ctx: Any, g: Tensor) -> Any:
    (indices,) = ctx.saved_tensors
    return gather(g, indices, ""), *(None,) * (1 + len(ctx.rest))


# --- y, i = max_pool2d(x)


def _fake_max(x, kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, algorithm):
    size = _pool_shapes.pool2d(
        "max_pool2d", x.shape, (kh, kw), (sh, sw), (ph, pw), (dh, dw), ceil_mode
    )
    format = memory_format(x)
    return empty(x, size, format), empty(x, size, format, dtype=torch.int64)


def _max_backward(ctx: Any, dy: Tensor | None, _: Any) -> Any:
    none = (None,) * 10
    if dy is None:
        return None, *none
    (indices,) = ctx.saved_tensors
    *window, _ceil_mode = ctx.geometry
    dx = max_bwd(dy, indices, ctx.ih, ctx.iw, *window, ctx.channels_last, ctx.algorithm)
    return dx, *none


def _fake_max_bwd(dy, indices, ih, iw, kh, kw, sh, sw, ph, pw, dh, dw, channels_last, algorithm):
    return empty(dy, (dy.shape[0], dy.shape[1], ih, iw), format_of(channels_last))


def _add_jvp(ctx: Any, tdy: Tensor, *_: Any) -> Any:
    (indices,) = ctx.saved_tensors
    return max_bwd(tdy, indices, *ctx.rest)


# --- y, taps = max_pool2d_taps(x)


def maxima(x: Tensor, *args: Any) -> Tensor:
    """y alone, by the kernel that writes the least beside it."""
    if x.is_cuda or _native.emulates_cuda:
        return max_pool(x, *args)[0]
    if _values and not wants_derivative(x):
        return _values(x, *args)
    kh, kw, _sh, _sw, _ph, _pw, dh, dw = args[:8]
    tells = dh == dw == 1 and kh * kw <= 255  # a tap for every pixel of a window
    return (max_taps if tells else max_pool)(x, *args)[0]


def _fake_taps(x, kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, algorithm):
    y = _fake_values(x, kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, algorithm)
    return y, torch.empty_like(y, dtype=torch.uint8)


def _fake_values(x, kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, algorithm):
    size = _pool_shapes.pool2d(
        "max_pool2d", x.shape, (kh, kw), (sh, sw), (ph, pw), (dh, dw), ceil_mode
    )
    return empty(x, size, memory_format(x))


def _indices_of(taps: Tensor, iw: Any, kh: int, kw: int, sh: int, sw: int, ph: int, pw: int) -> Any:
    """i of taps; outside of backward and forward mode of higher order nobody asks."""
    tap = taps.long()
    rows = torch.arange(taps.shape[2], device=taps.device)[:, None] * sh - ph + tap // kw
    return rows * iw + torch.arange(taps.shape[3], device=taps.device) * sw - pw + tap % kw


def _taps_setup(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
    x, *window, _dh, _dw, _ceil_mode, ctx.algorithm = inputs
    y, taps = outputs
    ctx.mark_non_differentiable(taps)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(taps)
    ctx.save_for_forward(taps)
    ctx.window = window
    ctx.ih, ctx.iw = x.shape[2:]
    ctx.channels_last = one_layout(x, y)


def _taps_backward(ctx: Any, dy: Tensor | None, _: Any) -> Any:
    none = (None,) * 10
    if dy is None:
        return None, *none
    (taps,) = ctx.saved_tensors
    dx = taps_bwd(dy, taps, ctx.ih, ctx.iw, *ctx.window, ctx.channels_last, ctx.algorithm)
    return dx, *none


def _taps_jvp(ctx: Any, tx: Tensor, *_: Any) -> Any:
    (taps,) = ctx.saved_tensors
    return gather(tx, _indices_of(taps, ctx.iw, *ctx.window), ""), None


def _fake_taps_bwd(dy, taps, ih, iw, kh, kw, sh, sw, ph, pw, channels_last, algorithm):
    return empty(dy, (dy.shape[0], dy.shape[1], ih, iw), format_of(channels_last))


def _taps_bwd_backward(ctx: Any, g: Tensor) -> Any:
    (taps,) = ctx.saved_tensors
    _ih, iw, *window, _channels_last, _algorithm = ctx.rest
    return gather(g, _indices_of(taps, iw, *window), ""), *(None,) * (1 + len(ctx.rest))


def _taps_bwd_jvp(ctx: Any, tdy: Tensor, *_: Any) -> Any:
    (taps,) = ctx.saved_tensors
    return taps_bwd(tdy, taps, *ctx.rest)


# --- y, i = adaptive_max_pool2d(x)


def _fake_adaptive_max(x, oh, ow, algorithm):
    size, format = (x.shape[0], x.shape[1], oh, ow), memory_format(x)
    return empty(x, size, format), empty(x, size, format, dtype=torch.int64)


def _adaptive_max_backward(ctx: Any, dy: Tensor | None, _: Any) -> Any:
    if dy is None:
        return None, None, None, None
    (indices,) = ctx.saved_tensors
    # add takes any indices: a kernel forced on the windows need not know it.
    dx = add(dy, indices, ctx.ih, ctx.iw, ctx.channels_last, "")
    return dx, None, None, None


def _fake_add(dy, indices, ih, iw, channels_last, algorithm):
    return empty(dy, (dy.shape[0], dy.shape[1], ih, iw), format_of(channels_last))


def _adaptive_add_jvp(ctx: Any, tdy: Tensor, *_: Any) -> Any:
    (indices,) = ctx.saved_tensors
    return add(tdy, indices, *ctx.rest)


# --- y = max_unpool2d(x, i)


def _fake_unpool(x, indices, oh, ow, algorithm):
    return empty(x, (x.shape[0], x.shape[1], oh, ow), memory_format(x))


def _unpool_backward(ctx: Any, dy: Tensor) -> Any:
    (indices,) = ctx.saved_tensors
    return gather(dy, indices, ctx.rest[-1]), None, None, None, None


def _unpool_jvp(ctx: Any, tx: Tensor, *_: Any) -> Any:
    (indices,) = ctx.saved_tensors
    return unpool(tx, indices, *ctx.rest)


# --- dx = dy[i]


def _fake_gather(dy, indices, algorithm):
    return empty(dy, indices.shape, memory_format(dy))


def _gather_setup(ctx: Any, inputs: tuple, dx: Tensor) -> None:
    dy, indices, ctx.algorithm = inputs
    ctx.save_for_backward(indices)
    ctx.save_for_forward(indices)
    ctx.oh, ctx.ow = dy.shape[2:]
    ctx.channels_last = one_layout(dy, dx)


def _gather_backward(ctx: Any, g: Tensor) -> Any:
    (indices,) = ctx.saved_tensors
    return add(g, indices, ctx.oh, ctx.ow, ctx.channels_last, ""), None, None


def _gather_jvp(ctx: Any, tdy: Tensor, *_: Any) -> Any:
    (indices,) = ctx.saved_tensors
    return gather(tdy, indices, ctx.algorithm)


max_pool: Callable[..., Any] = register(
    "max_pool2d",
    tensors=1,
    fake=_fake_max,
    setup=_max_setup,
    backward=_max_backward,
    jvp=_max_jvp,
    vmap=folded(lambda *args: max_pool(*args), 1),
)
max_bwd: Callable[..., Any] = register(
    "max_pool2d_bwd",
    tensors=2,
    fake=_fake_max_bwd,
    setup=_add_setup,
    backward=_add_backward,
    jvp=_add_jvp,
    vmap=folded(lambda *args: max_bwd(*args), 2),
)
max_taps: Callable[..., Any] = register(
    "max_pool2d_taps",
    tensors=1,
    fake=_fake_taps,
    setup=_taps_setup,
    backward=_taps_backward,
    jvp=_taps_jvp,
    vmap=folded(lambda *args: max_taps(*args), 1),
)
taps_bwd: Callable[..., Any] = register(
    "max_pool2d_taps_bwd",
    tensors=2,
    fake=_fake_taps_bwd,
    setup=_add_setup,
    backward=_taps_bwd_backward,
    jvp=_taps_bwd_jvp,
    vmap=folded(lambda *args: taps_bwd(*args), 2),
)
adaptive_max: Callable[..., Any] = register(
    "adaptive_max_pool2d",
    tensors=1,
    fake=_fake_adaptive_max,
    setup=_max_setup,
    backward=_adaptive_max_backward,
    jvp=_max_jvp,
    vmap=folded(lambda *args: adaptive_max(*args), 1),
)
add: Callable[..., Any] = register(
    "adaptive_max_pool2d_bwd",
    tensors=2,
    fake=_fake_add,
    setup=_add_setup,
    backward=_add_backward,
    jvp=_adaptive_add_jvp,
    vmap=folded(lambda *args: add(*args), 2),
)
unpool: Callable[..., Any] = register(
    "max_unpool2d",
    tensors=2,
    fake=_fake_unpool,
    setup=_add_setup,
    backward=_unpool_backward,
    jvp=_unpool_jvp,
    vmap=folded(lambda *args: unpool(*args), 2),
)
gather: Callable[..., Any] = register(
    "max_unpool2d_bwd",
    tensors=2,
    fake=_fake_gather,
    setup=_gather_setup,
    backward=_gather_backward,
    jvp=_gather_jvp,
    vmap=folded(lambda *args: gather(*args), 2),
)
_values = _native.lib and declare("_max_pool2d_values", 1, _fake_values, None)._op
