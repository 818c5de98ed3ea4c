"""Winograd's algorithm on one image: tiles, their products, and the three matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyconv.inspect._extras import Shown, bare, cells, outline, pyplot


def matrices(m: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """(AT (m, n), G (n, r), BT (n, n)), float64, of F(m, r), n = m + r - 1: y = AT [(G g) * (BT d)].

    From the points 0, 1, -1, 2, -2, 1/2, -1/2, ..., infinity, by Toom and Cook: with N_j the product of
    p_j - p_l over l != j, G[j][k] = p_j^k / N_j, AT[i][j] = p_j^i, and BT's row j has the coefficients
    of the product of x - p_l over l != j; infinity picks the highest power.

    Source: Lavin and Gray, arXiv:1509.09308; Barabasz et al., arXiv:1803.10986.
    """
    n = m + r - 1
    pool = [Fraction(0), *(s * Fraction(*q) for q in ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (3, 1))
                           for s in (1, -1))]  # fmt: skip
    points = pool[: n - 1]
    at, g, bt = torch.zeros(m, n), torch.zeros(n, r), torch.zeros(n, n)
    at, g, bt = at.double(), g.double(), bt.double()
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        scale = prod((p - q for q in others), start=Fraction(1))
        at[:, j] = _exact(p**i for i in range(m))
        g[j] = _exact(p**k / scale for k in range(r))
        bt[j, : n - 1] = _coefficients(others)
    at[m - 1, n - 1] = g[n - 1, r - 1] = 1
    bt[n - 1] = _coefficients(points)
    return at, g, bt


def _coefficients(roots: list[Fraction]) -> Tensor:
    """Of the product of x - root, the constant first."""
    count = len(roots)
    sums = [sum(((-1) ** k * prod(some, start=Fraction(1)) for some in combinations(roots, k)),
                Fraction(0)) for k in range(count + 1)]  # fmt: skip
    return _exact(reversed(sums))


def _exact(values: Iterable[Fraction]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


@dataclass
class WinogradTiles(Shown):
    """One image and one kernel by F(m x m, r x r), tile by tile."""

    image: Tensor  # (H, W)
    kernel: Tensor  # (r, r)
    m: int
    at: Tensor
    g: Tensor
    bt: Tensor
    tiles: Tensor  # (TH, TW, n, n): overlapping pieces of the padded image
    products: Tensor  # (TH, TW, n, n): (G k G') * (BT d B)
    output: Tensor  # (OH, OW)
    padding: int

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """(AT, G, BT): a line of outputs is AT [(G k) * (BT d)]."""
        return self.at, self.g, self.bt

    @property
    def multiplications(self) -> tuple[int, int]:
        """(of Winograd's products, of the direct sum) for one tile of m x m outputs."""
        r = len(self.kernel)
        return len(self.bt) ** 2, (self.m * r) ** 2

    def plot(self, ax: Any = None) -> Any:
        """The tiles on the image; one of them, transformed, multiplied and back; returns the axes."""
        plt = pyplot()
        if ax is None:
            ax = plt.subplots(2, 4, figsize=(13, 6.6), layout="constrained")[1]
        ax = ax.ravel()
        bare(ax[0], "tiles of the input overlap").imshow(self.image.numpy(), cmap="gray")
        n, (down, across) = len(self.bt), self.tiles.shape[:2]
        row, column = down // 2, across // 2
        for i in range(down):
            for j in range(across):
                corner = i * self.m - self.padding, j * self.m - self.padding
                here = (i, j) == (row, column)
                style = {"linewidth": 2.5, "zorder": 3} if here else {"linewidth": 0.7}
                outline(ax[0], *corner, n, n, "tab:orange" if here else "tab:blue", **style)
        tile, product = self.tiles[row, column], self.products[row, column]
        wino, direct = self.multiplications
        size = 9 if n <= 4 else 7
        cells(bare(ax[1], f"one tile $d$, {n} x {n}"), tile, size)
        cells(bare(ax[2], "$B^T d\\,B$"), self.bt @ tile.double() @ self.bt.T, size)
        cells(bare(ax[3], "kernel $k$"), self.kernel)
        cells(bare(ax[4], "$G\\,k\\,G^T$"), self.g @ self.kernel.double() @ self.g.T, size)
        cells(bare(ax[5], f"their {wino} products, not {direct}"), product, size)
        back = self.at @ product @ self.at.T
        cells(bare(ax[6], f"back, $A^T[\\cdot]\\,A$: {self.m} x {self.m} outputs"), back)
        ax[7].imshow(self.output.numpy(), cmap="gray")
        bare(ax[7], "all tiles together")
        return ax


def winograd_tiles(image: Tensor, kernel: Tensor, m: int = 2, padding: int = 0) -> WinogradTiles:
    """Convolves an image with an r x r kernel by F(m x m, r x r), keeping every step, in float64.

    Args:
        image: (H, W).
        kernel: (r, r).
        m: outputs of a tile along each axis; m + r - 1 is at most 14.
        padding: zeros on each side.

    Raises:
        ValueError: a size is not as above.

    >>> from pyconv import inspect
    >>> import torch
    >>> found = inspect.winograd_tiles(torch.ones(8, 8), torch.ones(3, 3), m=4)
    >>> found.multiplications
    (36, 144)
    >>> found.output.round().int().unique().tolist()
    [9]
    """
    if image.dim() != 2 or kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            "winograd_tiles: image must be (H, W) and kernel (r, r), got "
            f"{tuple(image.shape)} and {tuple(kernel.shape)}"
        )
    r, n = len(kernel), m + len(kernel) - 1
    if m < 1 or n > 14:
        raise ValueError(
            f"winograd_tiles: m must be from 1 to {15 - r} for a {r}x{r} kernel, got {m}"
        )
    oh, ow = (side + 2 * padding - r + 1 for side in image.shape)
    if oh < 1 or ow < 1:
        raise ValueError(f"winograd_tiles: a {r}x{r} kernel does not fit into {tuple(image.shape)}")
    at, g, bt = matrices(m, r)
    down, across = -(-oh // m), -(-ow // m)
    size = (down * m + r - 1, across * m + r - 1)
    padded = torch.zeros(size, dtype=torch.float64)
    padded[padding : padding + image.shape[0], padding : padding + image.shape[1]] = image.detach()
    tiles = torch.stack([
        torch.stack([padded[i * m : i * m + n, j * m : j * m + n] for j in range(across)])
        for i in range(down)
    ])  # fmt: skip
    products = (g @ kernel.detach().double() @ g.T) * (bt @ tiles @ bt.T)
    pieces = at @ products @ at.T  # (TH, TW, m, m)
    output = pieces.transpose(1, 2).reshape(down * m, across * m)[:oh, :ow]
    return WinogradTiles(
        image.detach(), kernel.detach(), m, at, g, bt, tiles, products, output, padding
    )


def show_winograd_tiles(
    image: Tensor, kernel: Tensor, m: int = 2, padding: int = 0
) -> WinogradTiles:
    """Draws `winograd_tiles`; returns it.

    >>> from pyconv import data, inspect
    >>> import torch
    >>> found = inspect.show_winograd_tiles(data.load("mnist").train.images[12, 0], torch.eye(3))
    >>> tuple(found.tiles.shape)
    (13, 13, 4, 4)
    """
    return winograd_tiles(image, kernel, m, padding).show()
