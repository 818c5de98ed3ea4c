"""The sum of a sliding window, term by term: what an animation shows, on a page as in a GIF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Term:
    """One tap of a window: value and weight, None in the padding of a max pooling."""

    channel: int
    tap: tuple[int, int]
    pixel: tuple[int, int]
    padding: bool  # the pixel lies beyond the border
    value: float
    weight: float
    product: float
    running: float  # the sum, or the maximum, up to here


@dataclass
class Steps:
    """One image under a sliding window, through the output as it lies in memory: channel, row, column."""

    title: str
    operation: dict[str, Any]  # kind, geometry; tensors x (C, H, W), w, b, y (OC, OH, OW)

    def __len__(self) -> int:
        return self.operation["y"].numel()

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that some window covers or that padding adds: ceil_mode may go beyond both."""
        o = self.operation
        down, across = (
            max(
                o["x"].shape[1 + axis] + 2 * o["padding"][axis],
                (o["y"].shape[1 + axis] - 1) * o["stride"][axis]
                + o["dilation"][axis] * (o["kernel"][axis] - 1)
                + 1,
            )
            for axis in (0, 1)
        )
        return down, across

    def position(self, number: int) -> tuple[int, int, int]:
        """(oc, oh, ow) of a step."""
        _, oh, ow = self.operation["y"].shape
        return number // (oh * ow), number // ow % oh, number % ow

    def step(self, number: int) -> list[Term]:
        """The terms of one output, in the order in which they are summed."""
        o = self.operation
        (sh, sw), (ph, pw), (dh, dw) = o["stride"], o["padding"], o["dilation"]
        oc, oh, ow = self.position(number)
        running, terms = -float("inf") if o["kind"] == "max" else 0.0, []
        for inside, c in enumerate(_channels(o, oc)):
            for i in range(o["kernel"][0]):
                for j in range(o["kernel"][1]):
                    h, w = oh * sh - ph + i * dh, ow * sw - pw + j * dw
                    outside = not (0 <= h < o["x"].shape[1] and 0 <= w < o["x"].shape[2])
                    value = 0.0 if outside else float(o["x"][c, h, w])
                    weight = float(o["w"][oc, inside, i, j]) if o["kind"] == "conv" else 1.0
                    if o["kind"] != "max":
                        running += value * weight
                    elif not outside:
                        running = max(running, value)
                    terms.append(
                        Term(c, (i, j), (h, w), outside, value, weight, value * weight, running)
                    )
        return terms

    def divisor(self, number: int) -> int:
        """Of an average: the pixels of the window, beyond the border only if they count."""
        o = self.operation
        _, oh, ow = self.position(number)
        sides = []
        for axis, at in enumerate((oh, ow)):
            size, pad = o["x"].shape[1 + axis], o["padding"][axis]
            first = at * o["stride"][axis] - pad
            # A window of ceil_mode may go beyond the padding, where nothing counts.
            last = min(first + o["kernel"][axis], size + pad)
            if not o["count_include_pad"]:
                first, last = max(first, 0), min(last, size)
            sides.append(last - first)
        return sides[0] * sides[1]


def _channels(o: dict[str, Any], oc: int) -> range:
    """The input channels that an output channel sees."""
    if o["kind"] != "conv":
        return range(oc, oc + 1)
    inside, per_group = o["w"].shape[1], o["w"].shape[0] // o["groups"]
    return range(oc // per_group * inside, oc // per_group * inside + inside)
