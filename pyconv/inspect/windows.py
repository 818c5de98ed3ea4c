"""The matrix of all windows, with which a convolution is one matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyconv import _shapes
from pyconv._shapes import pair
from pyconv.inspect._extras import Shown, bare, outline, pyplot
from pyconv.inspect.matrix import Pair, picture


@dataclass
class Im2col(Shown):
    """The matrix of all windows: conv2d(x, w) = w.flatten(1) @ columns."""

    image: Tensor  # (C, H, W)
    columns: Tensor  # (C*KH*KW, OH*OW)
    kernel: tuple[int, int]
    output: tuple[int, int]
    geometry: tuple[tuple[int, int], ...]  # stride, padding, dilation

    def plot(self, ax: Any = None, at: int | None = None) -> Any:
        """The image with one window marked, and the matrix with its column; returns the two axes."""
        if ax is None:
            ax = pyplot().subplots(
                1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(1, 2)
            )[1]
        at = self.columns.shape[1] // 2 if at is None else at
        bare(ax[0], f"image, window {at}").imshow(picture(self.image), cmap="gray")
        ax[1].imshow(self.columns.numpy(), cmap="gray", aspect="auto", interpolation="nearest")
        stride, padding, dilation = self.geometry
        row, column = divmod(at, self.output[1])
        top, left = (o * s - p for o, s, p in zip((row, column), stride, padding))
        height, width = (d * (k - 1) + 1 for k, d in zip(self.kernel, dilation))
        outline(ax[0], top, left, height, width)
        outline(ax[1], 0, at, len(self.columns), 1)
        rows, count = self.columns.shape
        ax[1].set(title=f"im2col: {rows} taps x {count} windows", xlabel="window (oh, ow)",
                  ylabel="tap (ic, kh, kw)")  # fmt: skip
        ax[1].title.set_fontsize(9)
        return ax


def im2col(
    image: Tensor, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Im2col:
    """Every window of an image as a column, so that a convolution is one matrix product.

    columns[(c, kh, kw), (oh, ow)] = image[c, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW]

    Source: Chellapilla, Puri, Simard, High performance convolutional neural networks for document
    processing, 2006.

    >>> from pyconv import inspect
    >>> import torch
    >>> found = inspect.im2col(torch.arange(9.0).view(3, 3), kernel_size=2)
    >>> found.columns.int().tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    """
    op = "im2col"
    image = image[None] if image.dim() == 2 else image
    kh, kw = pair(op, "kernel_size", kernel_size)
    (sh, sw), (ph, pw) = pair(op, "stride", stride), pair(op, "padding", padding)
    dh, dw = pair(op, "dilation", dilation)
    _, _, oh, ow = _shapes.conv2d(
        (1, *image.shape), (1, len(image), kh, kw), (sh, sw), (ph, pw), (dh, dw), 1
    )
    padded = torch.nn.functional.pad(image.detach(), (pw, pw, ph, ph))
    taps = [
        padded[
            :, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw
        ]
        for i in range(kh)
        for j in range(kw)
    ]
    columns = torch.stack(taps, 1).reshape(len(image) * kh * kw, oh * ow)  # (C, KH*KW, OH, OW)
    return Im2col(image, columns, (kh, kw), (oh, ow), ((sh, sw), (ph, pw), (dh, dw)))


def show_im2col(
    image: Tensor,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    at: int | None = None,
) -> Im2col:
    """Draws `im2col`, the window `at` marked; returns it.

    >>> from pyconv import data, inspect
    >>> found = inspect.show_im2col(data.load("mnist").train.images[12], 3, padding=1, at=205)
    >>> tuple(found.columns.shape)
    (9, 784)
    """
    found = im2col(image, kernel_size, stride, padding, dilation)
    found.figure = found.plot(at=at)[0].figure
    return found
