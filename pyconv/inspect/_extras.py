"""matplotlib and rich, asked for only when something is drawn."""

from __future__ import annotations

from typing import Any

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


class Shown:
    """What has a `plot`; `show` draws it into a new figure, kept in `figure` to be saved."""

    figure: Any = None

    def plot(self, ax: Any = None) -> Any:
        raise NotImplementedError

    def show(self) -> Any:
        """Draw, and return the object itself."""
        drawn = self.plot()
        self.figure = (drawn.ravel()[0] if hasattr(drawn, "ravel") else drawn).figure
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
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    return table
