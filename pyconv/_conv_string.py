"""Convolutions as text, in the spelling of oneDNN's benchdnn: ic96ih56oc96oh56kh7ph3g96.

    mb batch   g groups   ic ih iw input   oc oh ow output   kh kw kernel   sh sw stride
    ph pw padding   dh dw dilation (as torch counts it: 1 is none)   n"a name"

Widths default to their heights, mb and all strides, dilations and groups to 1, padding to 0; oh and ow
are checked if given. Source: oneDNN, tests/benchdnn/doc/driver_conv.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pyconv import _shapes
from pyconv._shapes import ShapeError

_KEYS = (
    "mb",
    "g",
    "ic",
    "ih",
    "iw",
    "oc",
    "oh",
    "ow",
    "kh",
    "kw",
    "sh",
    "sw",
    "ph",
    "pw",
    "dh",
    "dw",
)


@dataclass(frozen=True)
class Conv2dCase:
    """One convolution: sizes of its operands and its geometry."""

    mb: int
    g: int
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.text

    @property
    def text(self) -> str:
        return "".join(f"{key}{getattr(self, key)}" for key in _KEYS if hasattr(self, key))

    @property
    def x(self) -> tuple[int, int, int, int]:
        return self.mb, self.ic, self.ih, self.iw

    @property
    def w(self) -> tuple[int, int, int, int]:
        return self.oc, self.ic // self.g, self.kh, self.kw

    @property
    def arguments(self) -> dict[str, object]:
        """Keyword arguments of conv2d."""
        return {
            "stride": (self.sh, self.sw),
            "padding": (self.ph, self.pw),
            "dilation": (self.dh, self.dw),
            "groups": self.g,
        }

    @property
    def geometry(self) -> tuple[int, ...]:
        """(sh, sw, ph, pw, dh, dw, groups), as the raw operators take it."""
        return self.sh, self.sw, self.ph, self.pw, self.dh, self.dw, self.g

    @property
    def y(self) -> tuple[int, int, int, int]:
        """The output's size, or a ShapeError that says why there is none."""
        return _shapes.conv2d(
            self.x, self.w, (self.sh, self.sw), (self.ph, self.pw), (self.dh, self.dw), self.g
        )

    def with_batch(self, mb: int) -> Conv2dCase:
        return replace(self, mb=mb)


def conv2d(text: str) -> Conv2dCase:
    """Reads a convolution.

    Raises:
        ShapeError: a word that is none of the above, a size that is missing, or sizes that do not fit.
    """
    name = ""
    body = text
    if quoted := re.search(r'n"([^"]*)"', body):
        name, body = quoted[1], body.replace(quoted[0], "")
    body = body.replace("_", "")  # benchdnn allows them between words
    words = re.findall(r"([a-z]+)(\d+)", body)
    unknown = [key for key, _ in words if key not in _KEYS]
    if unknown or "".join(key + value for key, value in words) != body:
        raise ShapeError(
            f"conv string: {text!r} must be made of {', '.join(_KEYS)}, each with a number"
            + (f"; got {unknown[0]!r}" if unknown else "")
        )
    given = {key: int(value) for key, value in words}
    missing = [key for key in ("ic", "ih", "oc", "kh") if key not in given]
    if missing:
        raise ShapeError(f"conv string: {text!r} has no {', '.join(missing)}")
    sizes = {key: given.get(key, 1) for key in ("mb", "g", "ic", "oc")}
    for letter, default in (("i", 1), ("k", 1), ("s", 1), ("p", 0), ("d", 1)):
        height = given.get(letter + "h", default)
        sizes[letter + "h"], sizes[letter + "w"] = height, given.get(letter + "w", height)
    case = Conv2dCase(**sizes, name=name)
    _, _, oh, ow = case.y
    if given.get("oh", oh) != oh or given.get("ow", given.get("oh", ow)) != ow:
        raise ShapeError(
            f"conv string: {text!r} gives an output of {oh} x {ow}, not what oh and ow say"
        )
    return case
