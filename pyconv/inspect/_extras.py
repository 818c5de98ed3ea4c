"""What tables and figures share; matplotlib and rich are asked for only when something is drawn."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

INSTALL = "pip install 'pyconv[inspect]'"


def pyplot() -> Any:
    """matplotlib.pyplot, or one sentence that says how to get it."""
    try:
        import matplotlib.pyplot
    except ImportError:
        raise ImportError(f"pyconv.inspect: plots need matplotlib: {INSTALL}") from None
    return matplotlib.pyplot


def axes(ax: Any = None, **figure: Any) -> Any:
    """`ax`, or the axes of a new figure."""
    return pyplot().subplots(layout="constrained", **figure)[1] if ax is None else ax


def bare(ax: Any, title: str = "") -> Any:
    """Axes without ticks, for images."""
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def cells(ax: Any, values: Tensor, size: float = 9, limit: float | None = None) -> Any:
    """A matrix (H, W) as cells with their numbers, blue above zero and red below; NaN is an empty grey cell.

    Args:
        size: of the numbers, in points; 0 leaves them out.
        limit: the largest magnitude of the colours, default that of the values.
    """
    from matplotlib import colormaps

    values = values.detach().double() + 0.0  # no -0
    there = values.isfinite()
    limit = limit or float(values[there].abs().amax()) if there.any() else 1.0
    colors = colormaps["RdBu"].with_extremes(bad="0.9")
    far = 1.5 * (limit or 1.0)  # so pale that black numbers can be read
    ax.imshow(values.numpy(), cmap=colors, vmin=-far, vmax=far)
    rows, columns = values.shape
    for at in range(1, rows):
        ax.axhline(at - 0.5, color="white", linewidth=0.6)
    for at in range(1, columns):
        ax.axvline(at - 0.5, color="white", linewidth=0.6)
    if size:
        digits = 4 if max(rows, columns) <= 4 else 3
        for (row, column), value in zip(there.nonzero().tolist(), values[there].tolist()):
            ax.text(column, row, f"{value:.{digits}g}", ha="center", va="center", fontsize=size)
    return ax


def outline(
    ax: Any,
    top: float,
    left: float,
    height: float,
    width: float,
    color: Any = "tab:orange",
    **style: Any,
) -> None:
    """A frame around pixels, whose centres are whole numbers."""
    from matplotlib.patches import Rectangle

    style = {"linewidth": 2, "edgecolor": color, **style}
    ax.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, **style))


class Shown:
    """What has a `plot`; `show` draws it into a new figure, kept in `figure` to be saved."""

    figure: Any = None

    def plot(self, ax: Any = None) -> Any:
        raise NotImplementedError

    def show(self) -> Any:
        """Draw, and return the object itself."""
        drawn = self.plot()
        first = drawn.ravel()[0] if hasattr(drawn, "ravel") else drawn
        self.figure = (first[0] if isinstance(first, list) else first).figure
        return self


def text_table(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def rich_table(title: str, head: list[str], rows: list[list[str]]) -> Any:
    """The same for rich."""
    try:
        from rich.table import Table
    except ImportError:
        raise ImportError(
            f"pyconv.inspect: coloured tables need rich: {INSTALL}; print(...) needs nothing"
        ) from None
    table = Table(title=title)
    for i, name in enumerate(head):
        if i == 0:
            widest = max((len(row[0]) for row in rows), default=0)
            table.add_column(name, min_width=min(widest, 16))  # not given up on a narrow terminal
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def as_time(seconds: float) -> str:
    if not seconds >= 0:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def as_number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def as_share(value: float) -> str:
    return "" if not value < math.inf else f"{value:.0%}"


def as_bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
