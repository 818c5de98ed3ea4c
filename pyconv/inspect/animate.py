"""A window that slides: what it sees, the products, and their sum written out, on a page or in a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pyconv import ops
from pyconv._shapes import ShapeError, pair
from pyconv.inspect import _frames
from pyconv.inspect._extras import Shown, text_table
from pyconv.inspect._page import encoded, framed, page
from pyconv.inspect._steps import Steps

Pair = int | tuple[int, int]


class Animation(Steps, Shown):
    """One image under a sliding window: `save` it as a page or a GIF, `plot` a step, or read its steps.

    Steps go through the output as it lies in memory: channel, row, column.
    """

    def text(self, number: int) -> str:
        """One step as a table for the terminal."""
        kind, (oc, oh, ow) = self.operation["kind"], self.position(number)
        head = [
            "c, kh, kw",
            "pixel",
            "value",
            "weight",
            "product",
            "maximum" if kind == "max" else "sum",
        ]
        rows = [
            [f"{t.channel}, {t.tap[0]}, {t.tap[1]}", "padding" if t.padding else f"{t.pixel[0]}, {t.pixel[1]}",
             f"{t.value:g}", f"{t.weight:g}", f"{t.product:g}", f"{t.running:g}"]
            for t in self.step(number)
        ]  # fmt: skip
        result = float(self.operation["y"][oc, oh, ow])
        return f"output {oc}, {oh}, {ow} = {result:g}\n{text_table(head, rows)}"

    def html(self) -> str:
        """The page as text."""
        o = {k: encoded(v) if isinstance(v, Tensor) else v for k, v in self.operation.items()}
        return page(self.title, ["animate.js"], {"title": self.title, "operation": o})

    def plot(self, ax: Any = None, number: int | None = None) -> Any:
        """One step, default the middle one; returns its axes: input channels, output, sum."""
        ax = _frames.figure_of(self)[1] if ax is None else ax
        _frames.draw(self, len(self) // 2 if number is None else number, ax)
        return ax

    def save(self, path: str | Path, seconds: float = 0.7) -> Path:
        """Write a page, which needs no other file and no network, or where `path` ends in .gif a GIF.

        Args:
            seconds: for which the GIF shows a step.

        Raises:
            ValueError: a GIF would have more than 400 steps.
        """
        path = Path(path)
        if path.suffix == ".gif":
            _frames.save_gif(self, path, seconds)
        else:
            path.write_text(self.html(), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return framed(self.html(), height=780)


def _image(op: str, x: Tensor) -> Tensor:
    x = x.detach()
    x = x[None] if x.dim() == 2 else x
    if x.dim() != 3:
        raise ShapeError(f"{op}: x must be one image, (H, W) or (C, H, W), got {tuple(x.shape)}")
    return x if x.is_floating_point() else x.float()


def animate_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Animation:
    """A convolution, one output after the other, on a page to play, step through or drag.

    y[oc, oh, ow] = b[oc] + sum over ic, kh, kw of
    x[ic, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW] * w[oc, ic, kh, kw]

    Args:
        x: (H, W) or (C, H, W).
        w: (KH, KW) or (OC, C/groups, KH, KW).

    Raises:
        ShapeError: the sizes do not fit, as conv2d says.

    >>> import torch
    >>> from pyconv import inspect
    >>> page = inspect.animate_conv(torch.arange(9.0).view(3, 3), torch.ones(2, 2), padding=1)
    >>> [term.product for term in page.step(5)]  # output 1, 1 of 4 x 4
    [0.0, 1.0, 3.0, 4.0]
    >>> page.step(5)[-1].running
    8.0
    """
    op = "animate_conv"
    x, w = _image(op, x), (w[None, None] if w.dim() == 2 else w).detach()
    w = w.to(x.dtype)
    geometry: dict[str, Any] = {
        "stride": pair(op, "stride", stride),
        "padding": pair(op, "padding", padding),
        "dilation": pair(op, "dilation", dilation),
    }
    bias = None if b is None else b.detach().to(x.dtype)
    y = ops.conv2d(x[None], w, bias, **geometry, groups=groups)[0]
    kernel = (w.shape[2], w.shape[3])
    title = f"conv2d {'x'.join(map(str, x.shape))}, kernel {kernel[0]}x{kernel[1]}"
    title += "".join(
        f", {k} {v[0]}x{v[1]}" for k, v in geometry.items() if v != (k != "padding",) * 2
    )
    title += f", groups {groups}" * (groups > 1)
    return Animation(
        title,
        {
            "kind": "conv",
            "kernel": kernel,
            "groups": groups,
            "x": x,
            "w": w,
            "b": bias,
            "y": y,
            **geometry,
        },
    )


def animate_pool(
    x: Tensor,
    kernel_size: Pair,
    kind: str = "max",
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Animation:
    """A pooling, "max" or "avg", one output after the other, on a page to play or step through.

    Args:
        x: (H, W) or (C, H, W).
        stride: default the kernel's size.
        dilation: of max pooling alone; count_include_pad of average pooling alone.

    Raises:
        ShapeError: the sizes do not fit, as the pooling says.
        ValueError: another kind, or an average with dilation.

    >>> import torch
    >>> from pyconv import inspect
    >>> page = inspect.animate_pool(torch.arange(16.0).view(4, 4), 2)
    >>> [page.step(number)[-1].running for number in range(len(page))]
    [5.0, 7.0, 13.0, 15.0]
    """
    op = "animate_pool"
    if kind not in ("max", "avg") or (kind == "avg" and pair(op, "dilation", dilation) != (1, 1)):
        raise ValueError(
            f"{op}: kind must be 'max' or 'avg', and only 'max' has a dilation, got {kind!r}"
        )
    x, kernel = _image(op, x), pair(op, "kernel_size", kernel_size)
    geometry: dict[str, Any] = {
        "stride": kernel if stride is None else pair(op, "stride", stride),
        "padding": pair(op, "padding", padding),
    }
    dilation = pair(op, "dilation", dilation)
    if kind == "max":
        y = ops.max_pool2d(x[None], kernel, **geometry, dilation=dilation, ceil_mode=ceil_mode)
    else:
        y = ops.avg_pool2d(
            x[None],
            kernel,
            **geometry,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )
    assert isinstance(y, Tensor)
    title = f"{kind}_pool2d {'x'.join(map(str, x.shape))}, kernel {kernel[0]}x{kernel[1]}"
    title += (
        "".join(f", {k} {v[0]}x{v[1]}" for k, v in geometry.items()) + ", ceil_mode" * ceil_mode
    )
    return Animation(
        title,
        {"kind": kind, "kernel": kernel, "groups": len(x), "x": x, "w": None, "b": None, "y": y[0],
         "dilation": dilation, "count_include_pad": count_include_pad, **geometry},
    )  # fmt: skip
