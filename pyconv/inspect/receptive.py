"""Which pixels of the image a unit sees: what the layers allow, and what the gradient says it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv.inspect._extras import Shown, axes, bare, outline
from pyconv.inspect._follow import Field, Follow
from pyconv.inspect._walk import first_tensor, layer_of, leaves, untouched

nn = torch.nn


@dataclass
class ReceptiveField(Shown):
    """What `receptive_field` found: fields, one a layer call, and the effective field by gradient."""

    model: Module
    size: tuple[int, int, int]
    layers: list[Field]

    def __getitem__(self, layer: str) -> Field:
        for field in reversed(self.layers):
            if field.name == layer:
                return field
        names = ", ".join(field.name for field in self.layers)
        raise KeyError(f"there is no layer {layer!r} with pixels behind it; there are {names}")

    def __str__(self) -> str:
        return "\n".join(
            f"{f.name:<16} {f.kind:<18} {'x'.join(map(str, f.output[1:])):<12} sees "
            f"{f.size[0]} x {f.size[1]} pixels, neighbours {f.jump[0]} x {f.jump[1]} apart"
            for f in self.layers
        )

    def effective(
        self, layer: str, at: tuple[int, int] | None = None, images: Tensor | int = 16
    ) -> Tensor:
        """(H, W): mean over images of |d y[:, row, column].sum() / d x|, summed over its channels.

        Args:
            layer: whose unit.
            at: (row, column), default the middle.
            images: (N, C, H, W), or how many random ones.

        Source: Luo, Li, Urtasun, Zemel, Understanding the effective receptive field in deep
        convolutional neural networks, arXiv:1701.04128.
        """
        _, module = layer_of(self.model, layer)
        reference = next(self.model.parameters(), torch.zeros(()))
        x = torch.randn(images, *self.size) if isinstance(images, int) else images.detach().clone()
        x = x.to(reference).requires_grad_()
        kept: list[Tensor] = []

        def keep(m: Module, args: Any, output: Any) -> None:
            y = first_tensor(output)
            assert y is not None
            kept.append(y.clone())  # what follows may work in place

        handle = module.register_forward_hook(keep)
        try:
            with untouched(self.model), torch.enable_grad():
                self.model(x)
                y = kept[-1]
                row, column = at or (y.shape[-2] // 2, y.shape[-1] // 2)
                unit = y[:, :, row, column] if y.dim() == 4 else y
                (gradient,) = torch.autograd.grad(unit.sum(), x)
        finally:
            handle.remove()
        return gradient.abs().sum(1).mean(0)

    def plot(self, ax: Any = None, image: Tensor | None = None, layer: str | None = None) -> Any:
        """The effective field of a layer's middle unit, and the field of every layer up to it as a box.

        Args:
            image: (C, H, W) or (H, W), drawn below; without one, the effective field alone.
            layer: default the last that has pixels.
        """
        ax = bare(axes(ax, figsize=(6.4, 4)))
        layer = layer or next(f.name for f in reversed(self.layers) if len(f.spans[0]) > 1)
        last = self[layer]
        if image is not None:
            ax.imshow(_displayed(image), cmap="gray")
        gradient = self.effective(layer)
        heat = (gradient / gradient.max().clamp_min(1e-30)).sqrt().cpu().numpy()
        ax.imshow(heat, cmap="inferno", alpha=heat.clip(0, 0.8) if image is not None else 1)
        wider: dict[tuple[int, int], Field] = {}  # the first layer with each size
        for field in self.layers[: self.layers.index(last) + 1]:
            wider.setdefault(field.size, field)
        wider.pop((1, 1), None)
        for number, (field, color) in enumerate(zip(wider.values(), _colors(len(wider)))):
            top, left, bottom, right = field.box(len(field.spans[0]) // 2, len(field.spans[1]) // 2)
            height, width = bottom - top + 1, right - left + 1
            # Fields have edges in common: the larger are thicker, and below.
            style = {
                "linewidth": 1.2 + 1.6 * number / len(wider),
                "zorder": 3 - number / len(wider),
            }
            label = f"{height} x {width}: {field.name}"
            outline(ax, top, left, height, width, color, label=label, **style)
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        ax.set_title(f"what the middle unit of {layer} sees", fontsize=9)
        return ax


def _colors(count: int) -> list[Any]:
    """Colours from one map, one a layer."""
    from matplotlib import colormaps

    return [colormaps["turbo"](0.1 + 0.8 * i / max(count - 1, 1)) for i in range(count)]


def _displayed(image: Tensor) -> Any:
    image = image.detach().cpu().float()
    if image.dim() == 3:
        image = image[0] if image.shape[0] != 3 else image.permute(1, 2, 0).clamp(0, 1)
    return image.numpy()


def receptive_field(model: Module, size: int | Sequence[int]) -> ReceptiveField:
    """What every unit of every layer can see of an image.

    Follows the pixels through layers, and through whatever is computed between them from their
    outputs: sums, concatenations, reshapes. Exact, position by position, paddings and borders
    included; a field larger than the image is cut to it.

    Args:
        model: any model; a layer of an unknown kind is asked by its gradient.
        size: of the image: a side, (H, W) or (C, H, W); without C, what the first convolution takes.

    Raises:
        NotImplementedError: pixels pass through something whose windows are not known, such as a
            convolution that is called as a function.

    >>> from pyconv import inspect, models
    >>> fields = inspect.receptive_field(models.LeNet5(), 28)
    >>> fields["conv1"].size, fields["pool2"].size, fields["pool2"].jump
    ((5, 5), (16, 16), (4, 4))
    >>> effective = fields.effective("pool2")
    >>> tuple(effective.shape), int((effective > 0).sum())  # 16 * 16
    ((28, 28), 256)
    """
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) == 2:
        channels = next((m.in_channels for _, m in leaves(model) if isinstance(m, nn.Conv2d)), 1)
        sizes = (channels, *sizes)
    follow = Follow(model)
    parameter = next(model.parameters(), torch.zeros(()))
    x = torch.zeros(1, *sizes, dtype=parameter.dtype, device=parameter.device)
    follow.know(x, ([(i, i) for i in range(sizes[1])], [(i, i) for i in range(sizes[2])]))
    with untouched(model), torch.no_grad(), follow.hooks(), follow:
        model(x)
    return ReceptiveField(model, (sizes[0], sizes[1], sizes[2]), follow.fields)
