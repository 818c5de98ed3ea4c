"""A convolution taken apart: one window, the matrix that it is, and the one that im2col makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyconv import _shapes, ops
from pyconv._shapes import ShapeError, pair
from pyconv.inspect._extras import Shown, axes, bare, cells, outline, pyplot

Pair = int | tuple[int, int]


@dataclass
class Applied(Shown):
    """One kernel over one image: y[oh, ow] = sum over ic, kh, kw of image * kernel."""

    image: Tensor  # (C, H, W)
    kernel: Tensor  # (C, KH, KW)
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    output: Tensor  # (OH, OW)

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns from the first tap of a window to its last."""
        down, across = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel.shape[1:]))
        return down, across

    def window(self, row: int, column: int) -> Tensor:
        """(C, KH, KW): what the output at (row, column) sees, zeros beyond the border included."""
        ph, pw = self.padding
        padded = torch.nn.functional.pad(self.image, (pw, pw, ph, ph))
        rows, columns = (
            slice(at * s, at * s + reach, d)
            for at, s, reach, d in zip((row, column), self.stride, self.reach, self.dilation)
        )
        return padded[:, rows, columns]

    def products(self, row: int, column: int) -> Tensor:
        """(C, KH, KW): window times kernel; their sum is output[row, column]."""
        return self.window(row, column) * self.kernel

    def plot(self, ax: Any = None, at: tuple[int, int] | None = None) -> Any:
        """Image, kernel and output side by side; with `at` also one window's products and their sum.

        `ax` is three axes, four with `at`, or None; returns them.
        """
        count = 3 if at is None else 4
        if ax is None:
            size = (2.9 * count, 3.1)
            ax = pyplot().subplots(1, count, figsize=size, layout="constrained")[1]
        bare(ax[0], "image").imshow(picture(self.image), cmap="gray")
        cells(bare(ax[1], "kernel"), self.kernel.mean(0))
        limit = float(self.output.abs().max()) or 1.0
        last = bare(ax[count - 1], "output")
        last.imshow(self.output.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
        if at is not None:
            top, left = (a * s - p for a, s, p in zip(at, self.stride, self.padding))
            outline(ax[0], top, left, *self.reach)
            outline(last, *at, 1, 1)
            title = f"window x kernel, sum {float(self.output[at]):g}"
            cells(bare(ax[2], title), self.products(*at).sum(0))
        return ax


def picture(image: Tensor) -> Any:
    """(C, H, W) for imshow: three channels in colour, others their mean."""
    if len(image) != 3:
        return image.mean(0).numpy()
    low, high = image.min(), image.max()
    return ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).numpy()


def apply_kernel(
    image: Tensor,
    kernel: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    algorithm: str | None = None,
) -> Applied:
    """Slides one kernel over one image.

    Args:
        image: (H, W) or (C, H, W).
        kernel: (KH, KW), used for every channel, or (C, KH, KW).
        stride, padding, dilation, algorithm: as of `pyconv.ops.conv2d`, which computes the output.

    >>> from pyconv import data, inspect
    >>> import torch
    >>> three = data.load("mnist").train.images[12] * 255
    >>> top_edge = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]])
    >>> edges = inspect.apply_kernel(three, top_edge)
    >>> edges.output[4, 6].item(), edges.output[7, 17].item()
    (762.0, -29.0)
    >>> edges.products(4, 6).sum().item()
    762.0
    """
    image = image[None] if image.dim() == 2 else image
    kernel = kernel.to(image).expand(len(image), *kernel.shape[-2:])
    op = "apply_kernel"
    stride, padding = pair(op, "stride", stride), pair(op, "padding", padding)
    dilation = pair(op, "dilation", dilation)
    weight = kernel[None].contiguous()
    output = ops.conv2d(image[None], weight, None, stride, padding, dilation, algorithm=algorithm)
    return Applied(image, kernel, stride, padding, dilation, output[0, 0])


@dataclass
class ConvMatrix(Shown):
    """A convolution as a matrix: y = matrix @ x, images flattened."""

    matrix: Tensor  # (OC*OH*OW, IC*IH*IW)
    tied: Tensor  # the same size, int64: the index of an entry's weight in weight.flatten(), -1 for none
    weight: Tensor
    x_shape: tuple[int, int, int]
    y_shape: tuple[int, int, int]
    arguments: dict[str, Any]

    def __matmul__(self, x: Tensor) -> Tensor:
        """(N, IC, IH, IW) -> (N, OC, OH, OW), by the matrix."""
        return (x.flatten(1).to(self.matrix) @ self.matrix.T).unflatten(1, self.y_shape)

    @property
    def zeros(self) -> float:
        """The share of entries that are no weight."""
        return float((self.tied < 0).double().mean())

    def proof(self, x: Tensor | None = None) -> float:
        """max |matrix @ x - conv2d(x)| in float64, on x (N, IC, IH, IW) or a random batch of 4."""
        x = torch.randn(4, *self.x_shape) if x is None else x
        exact = ops.conv2d(x.double(), self.weight.double(), None, **self.arguments)
        by_matrix = (x.double().flatten(1) @ self.matrix.double().T).unflatten(1, self.y_shape)
        return float((by_matrix - exact).abs().max())

    def plot(self, ax: Any = None) -> Any:
        """Each weight in a colour of its own wherever it stands, zeros white; returns the axes."""
        rows, columns = self.tied.shape
        ax = axes(ax, figsize=(7, max(1.5, 7 * rows / columns)))
        from matplotlib import colormaps

        count = self.weight.numel()
        colors = colormaps["turbo"](torch.linspace(0.05, 0.95, count).numpy())
        picture = torch.ones(rows, columns, 4)
        there = self.tied >= 0
        picture[there] = torch.tensor(colors, dtype=torch.float32)[self.tied[there]]
        ax.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
        if rows * columns <= 600:
            ax.set_xticks(range(columns))
            ax.set_yticks(range(rows))
            for (row, column), value in zip(there.nonzero().tolist(), self.matrix[there].tolist()):
                dark = picture[row, column, :3] @ torch.tensor([0.299, 0.587, 0.114]) < 0.45
                ax.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=8,
                        color="white" if dark else "black")  # fmt: skip
        ax.set(title=f"{rows} x {columns}, {count} weights, {self.zeros:.0%} zeros",
               xlabel="pixel of the input (ic, ih, iw)", ylabel="output (oc, oh, ow)")  # fmt: skip
        ax.title.set_fontsize(9)
        return ax


def conv_as_matrix(
    weight: Tensor,
    size: int | tuple[int, int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> ConvMatrix:
    """The matrix that a convolution is, its zeros and tied weights where they stand.

    matrix[(oc, oh, ow), (ic, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW)] = weight[oc, ic, kh, kw]; padding
    has no column, for it is zero.

    Args:
        weight: (OC, IC/groups, KH, KW), or (KH, KW) for one channel.
        size: (IH, IW) of the images.

    Raises:
        ShapeError: the sizes do not fit, as conv2d says; or the matrix would have over 2^28 entries.

    >>> from pyconv import inspect
    >>> import torch
    >>> matrix = inspect.conv_as_matrix(torch.tensor([[1.0, 2], [3, 4]]), size=3)
    >>> matrix.matrix.int().tolist()[0]  # the first output sees the corner
    [1, 2, 0, 3, 4, 0, 0, 0, 0]
    >>> matrix.proof() < 1e-12
    True
    """
    weight = (weight[None, None] if weight.dim() == 2 else weight).detach()
    op = "conv_as_matrix"
    ih, iw = pair(op, "size", size)
    stride, padding = pair(op, "stride", stride), pair(op, "padding", padding)
    dilation = pair(op, "dilation", dilation)
    ic = weight.shape[1] * groups
    _, oc, oh, ow = _shapes.conv2d((1, ic, ih, iw), weight.shape, stride, padding, dilation, groups)
    if oc * oh * ow * ic * ih * iw > 2**28:
        raise ShapeError(
            f"{op}: the matrix would be {oc * oh * ow} x {ic * ih * iw}: take a smaller image"
        )
    tied = torch.full((oc, oh, ow, ic, ih, iw), -1)
    index = torch.arange(weight.numel()).view(weight.shape)
    icg, ocg = weight.shape[1], oc // groups
    for kh in range(weight.shape[2]):
        rows = [(o, o * stride[0] - padding[0] + kh * dilation[0]) for o in range(oh)]
        for kw in range(weight.shape[3]):
            columns = [(o, o * stride[1] - padding[1] + kw * dilation[1]) for o in range(ow)]
            for o, i in ((o, i) for o, i in rows if 0 <= i < ih):
                for p, j in ((p, j) for p, j in columns if 0 <= j < iw):
                    for g in range(groups):
                        outputs, inputs = (
                            slice(g * ocg, g * ocg + ocg),
                            slice(g * icg, g * icg + icg),
                        )
                        tied[outputs, o, p, inputs, i, j] = index[outputs, :, kh, kw]
    flat = tied.reshape(oc * oh * ow, ic * ih * iw)
    values = torch.cat([weight.flatten(), weight.new_zeros(1)])[flat]  # -1 is the zero at the end
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return ConvMatrix(values, flat, weight, (ic, ih, iw), (oc, oh, ow), arguments)
