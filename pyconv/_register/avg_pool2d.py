"""Average pooling, which is linear: its gradient's gradient is itself, and nothing is saved but sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyconv import _pool_shapes
from pyconv._register._core import empty, format_of, memory_format, register
from pyconv._register.pool2d import folded, one_layout


def _avg_setup(ctx: Any, inputs: tuple, y: Tensor) -> None:
    x, *ctx.rest = inputs
    ctx.ih, ctx.iw = x.shape[2:]
    ctx.channels_last = one_layout(x, y)


def _fake_avg(x, kh, kw, sh, sw, ph, pw, ceil_mode, count_include_pad, divisor, algorithm):
    size = _pool_shapes.pool2d(
        "avg_pool2d", x.shape, (kh, kw), (sh, sw), (ph, pw), (1, 1), ceil_mode
    )
    return empty(x, size, memory_format(x))


def _avg_backward(ctx: Any, dy: Tensor) -> Any:
    *window, _ceil_mode, count_include_pad, divisor, algorithm = ctx.rest
    counting = (count_include_pad, divisor, ctx.channels_last, algorithm)
    return avg_bwd(dy, ctx.ih, ctx.iw, *window, *counting), *(None,) * len(ctx.rest)


def _avg_jvp(ctx: Any, tx: Tensor, *_: Any) -> Any:
    return avg(tx, *ctx.rest)


def _fake_avg_bwd(
    dy, ih, iw, kh, kw, sh, sw, ph, pw, count_include_pad, divisor, channels_last, algorithm
):
    return empty(dy, (dy.shape[0], dy.shape[1], ih, iw), format_of(channels_last))


def _avg_bwd_setup(ctx: Any, inputs: tuple, dx: Tensor) -> None:
    dy, *ctx.rest = inputs
    ctx.oh, ctx.ow = dy.shape[2:]


def _avg_bwd_backward(ctx: Any, g: Tensor) -> Any:
    _, _, *window, count_include_pad, divisor, _, algorithm = ctx.rest
    kh, kw, sh, sw, ph, pw = window
    floor = _pool_shapes.pool2d("avg_pool2d", g.shape, (kh, kw), (sh, sw), (ph, pw), (1, 1), False)
    ceil_mode = (ctx.oh, ctx.ow) != floor[2:]
    ddy = avg(g, *window, ceil_mode, count_include_pad, divisor, algorithm)
    return ddy, *(None,) * len(ctx.rest)


def _avg_bwd_jvp(ctx: Any, tdy: Tensor, *_: Any) -> Any:
    return avg_bwd(tdy, *ctx.rest)


def _fake_adaptive_avg(x, oh, ow, algorithm):
    return empty(x, (x.shape[0], x.shape[1], oh, ow), memory_format(x))


def _adaptive_avg_backward(ctx: Any, dy: Tensor) -> Any:
    dx = adaptive_avg_bwd(dy, ctx.ih, ctx.iw, ctx.channels_last, ctx.rest[-1])
    return dx, None, None, None


def _adaptive_avg_jvp(ctx: Any, tx: Tensor, *_: Any) -> Any:
    return adaptive_avg(tx, *ctx.rest)


def _fake_adaptive_avg_bwd(dy, ih, iw, channels_last, algorithm):
    return empty(dy, (dy.shape[0], dy.shape[1], ih, iw), format_of(channels_last))


def _adaptive_avg_bwd_backward(ctx: Any, g: Tensor) -> Any:
    return adaptive_avg(g, ctx.oh, ctx.ow, ctx.rest[-1]), None, None, None, None


def _adaptive_avg_bwd_jvp(ctx: Any, tdy: Tensor, *_: Any) -> Any:
    return adaptive_avg_bwd(tdy, *ctx.rest)


avg: Callable[..., Any] = register(
    "avg_pool2d",
    tensors=1,
    fake=_fake_avg,
    setup=_avg_setup,
    backward=_avg_backward,
    jvp=_avg_jvp,
    vmap=folded(lambda *args: avg(*args), 1),
)
avg_bwd: Callable[..., Any] = register(
    "avg_pool2d_bwd",
    tensors=1,
    fake=_fake_avg_bwd,
    setup=_avg_bwd_setup,
    backward=_avg_bwd_backward,
    jvp=_avg_bwd_jvp,
    vmap=folded(lambda *args: avg_bwd(*args), 1),
)
adaptive_avg: Callable[..., Any] = register(
    "adaptive_avg_pool2d",
    tensors=1,
    fake=_fake_adaptive_avg,
    setup=_avg_setup,
    backward=_adaptive_avg_backward,
    jvp=_adaptive_avg_jvp,
    vmap=folded(lambda *args: adaptive_avg(*args), 1),
)
adaptive_avg_bwd: Callable[..., Any] = register(
    "adaptive_avg_pool2d_bwd",
    tensors=1,
    fake=_fake_adaptive_avg_bwd,
    setup=_avg_bwd_setup,
    backward=_adaptive_avg_bwd_backward,
    jvp=_adaptive_avg_bwd_jvp,
    vmap=folded(lambda *args: adaptive_avg_bwd(*args), 1),
)
