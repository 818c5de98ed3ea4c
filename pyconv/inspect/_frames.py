"""One step of an animation as a figure, and all of them as a GIF."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyconv.inspect._extras import bare, cells, outline, pyplot
from pyconv.inspect._steps import Steps, Term

_INPUTS = 3  # channels that are drawn
_LINES = 14  # of the sum
_FRAMES = 400


def figure_of(animation: Steps) -> tuple[Any, list[Any]]:
    """A figure and its axes: input channels, output, and a place for the sum."""
    o = animation.operation
    inputs = min(len(o["w"][0]) if o["kind"] == "conv" else 1, _INPUTS)
    lines = min(len(list(sums(animation, 0))), _LINES + 1)
    figure = pyplot().figure(figsize=(3.1 * (inputs + 1), 3.1 + 0.19 * lines))
    grid = figure.add_gridspec(
        2, inputs + 1, height_ratios=(2.9, 0.19 * lines + 0.1), left=0.02, right=0.98, bottom=0.02,
        top=0.86, wspace=0.06, hspace=0.08,
    )  # fmt: skip
    pictures = [figure.add_subplot(grid[0, i]) for i in range(inputs + 1)]
    return figure, [*pictures, figure.add_subplot(grid[1, :])]


def draw(animation: Steps, number: int, axes: list[Any]) -> None:
    """One step: each input channel with its window, the outputs so far, and the products and their sum."""
    o, terms = animation.operation, animation.step(number)
    oc, oh, ow = animation.position(number)
    for ax in axes:
        ax.clear()
    ph, pw = o["padding"]
    channels = list(dict.fromkeys(term.channel for term in terms))
    limit = float(o["x"].abs().max())
    for ax, channel in zip(axes[:-2], channels):
        window = [term.pixel for term in terms if term.channel == channel]
        image = _padded(o, channel, animation.reach)
        marks = [(h + ph, w + pw) for h, w in window]
        _picture(ax, image, limit, marks, o["dilation"])
        hidden = f" of {len(channels)}" if len(channels) > _INPUTS else ""
        bare(ax, f"input, channel {channel}{hidden}" + ", padding grey" * (ph + pw > 0))
    y = o["y"][oc].double().clone()
    y.view(-1)[oh * y.shape[1] + ow + 1 :] = math.nan
    _picture(axes[-2], y, float(o["y"].abs().max()), [(oh, ow)], (1, 1))
    bare(axes[-2], f"output, channel {oc}")
    lines = list(sums(animation, number))
    if len(lines) > _LINES + 1:
        lines = [*lines[: _LINES - 1], "...", lines[-1]]
    axes[-1].set_axis_off()
    axes[-1].text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=9)
    axes[0].figure.suptitle(animation.title, fontsize=10)


def _padded(o: dict[str, Any], channel: int, reach: tuple[int, int]) -> Tensor:
    """A channel (rows, columns) as far as windows reach, NaN beyond the image."""
    image = torch.full(reach, math.nan, dtype=torch.float64)
    (ph, pw), (_, height, width) = o["padding"], o["x"].shape
    image[ph : ph + height, pw : pw + width] = o["x"][channel]
    return image


def _picture(
    ax: Any, values: Tensor, limit: float, marks: list[tuple[int, int]], dilation: tuple[int, int]
) -> None:
    """A matrix (H, W) with a window, whose taps are framed each if they lie apart."""
    side = max(values.shape)
    cells(ax, values, size=0 if side > 12 else 9 if side <= 8 else 6, limit=limit)
    (top, left), (bottom, right) = marks[0], marks[-1]
    boxes = [(top, left, bottom - top + 1, right - left + 1)]
    if dilation != (1, 1):
        boxes = [(h, w, 1, 1) for h, w in marks]
    for box in boxes:
        outline(ax, *box, linewidth=2.5, clip_on=False)


def sums(animation: Steps, number: int) -> Iterator[str]:
    """The sum, or the maximum, of a step: a line for each row of each channel's window, then the result."""
    o = animation.operation
    word = "maximum" if o["kind"] == "max" else "sum"
    for (channel, row), group in groupby(
        animation.step(number), key=lambda term: (term.channel, term.tap[0])
    ):
        terms = list(group)
        yield f"channel {channel}, row {row}:  {_written(o['kind'], terms)}   {word} {terms[-1].running:.4g}"
    result = f"{float(o['y'][animation.position(number)]):.4g}"
    if o["kind"] == "avg":
        result = f"sum / {animation.divisor(number)} = {result}"
    if o["b"] is not None:
        result = f"sum {float(o['b'][animation.position(number)[0]]):+.4g} bias = {result}"
    yield "output {}, {}, {}:  ".format(*animation.position(number)) + result


def _written(kind: str, terms: list[Term]) -> str:
    if kind == "conv":
        return " + ".join(f"{t.value:.3g}*{t.weight:.3g}" for t in terms)
    values = [f"{t.value:.3g}" for t in terms if not t.padding]
    if not values:
        return "no pixel"
    return " + ".join(values) if kind == "avg" else f"max({', '.join(values)})"


def save_gif(animation: Steps, path: Path, seconds: float) -> None:
    """All steps, one a frame.

    Raises:
        ValueError: there are more than 400.
    """
    if len(animation) > _FRAMES:
        raise ValueError(
            f"save: {path.name} would have {len(animation)} frames, and at most {_FRAMES} are drawn: take"
            " a smaller image, or save a page (.html)"
        )
    from matplotlib.animation import PillowWriter

    figure, axes = figure_of(animation)
    rate: Any = 1 / seconds  # the stubs want an int, Pillow does not
    writer = PillowWriter(fps=rate)
    with writer.saving(figure, str(path), dpi=80):
        for number in range(len(animation)):
            draw(animation, number, axes)
            writer.grab_frame()
    pyplot().close(figure)
