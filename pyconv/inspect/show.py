"""Filters, feature maps and colour channels as grids of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv.inspect._extras import Shown, bare, pyplot
from pyconv.inspect._walk import calls, first_tensor, layer_of, untouched

COLOURS = ("red", "green", "blue")


@dataclass
class Pictures(Shown):
    """Pictures (count, H, W) with titles, on one scale; `signed` ones are blue above zero and red below."""

    images: Tensor
    titles: list[str]
    columns: int
    signed: bool = False
    suptitle: str = ""
    color: Tensor | None = None  # (count, H, W, 3) where the pictures have colours

    def plot(self, ax: Any = None) -> Any:
        """A grid of axes, which it returns; `ax` takes axes that are there, as many as pictures."""
        if ax is None:
            columns = min(self.columns, len(self.images))
            rows = -(-len(self.images) // columns)
            side = 1.15 if len(self.images) > 4 else 2.1
            figure, ax = pyplot().subplots(
                rows, columns, squeeze=False, layout="constrained",
                figsize=(side * columns + 0.4, (side + 0.1) * rows + 0.4 * bool(self.suptitle)),
            )  # fmt: skip
            figure.suptitle(self.suptitle, fontsize=10)
        flat = ax.ravel() if hasattr(ax, "ravel") else ax
        low, high = self.images.aminmax() if self.images.numel() else (0.0, 1.0)
        limit = max(-float(low), float(high))
        scale: dict[str, Any] = {"cmap": "gray", "vmin": float(low), "vmax": float(high)}
        if self.signed:
            scale = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
        for one in flat[len(self.images) :]:
            one.set_axis_off()
        for i, one in enumerate(flat[: len(self.images)]):
            bare(one)
            shown = self.images if self.color is None else self.color
            one.imshow(shown[i].numpy(), **scale)
            one.set_title(self.titles[i], fontsize=7, pad=2)
        return ax


def show_filters(model: Module, layer: str | int, most: int = 64, columns: int = 8) -> Pictures:
    """Draws the filters of a convolution, one picture for each pair of output and input channel.

    Filters of three input channels are taken for filters of colours: with no groups each is one
    picture, in which zero is grey; with three groups each is drawn in the colour of the channel it sees
    where it is above zero, and in the opposite colour below. `images` of what it returns are the weights
    (count, KH, KW), of filters in colour their mean over the channels.

    Args:
        layer: name or number of the layer; for a layer given as `model`, 0.

    Raises:
        ValueError: the layer has no filters.

    >>> from pyconv import inspect, models
    >>> inspect.show_filters(models.LeNet5(), "conv1").images.shape
    torch.Size([6, 5, 5])
    """
    name, module = layer_of(model, layer)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        raise ValueError(f"show_filters: {name} is a {type(module).__name__}, which has no filters")
    weight = weight.detach().float().cpu()
    title = f"{name}: {'x'.join(map(str, weight.shape))}"
    groups = getattr(module, "groups", 1)
    if weight.shape[1] * groups == 3:
        count = min(len(weight), most)
        color = torch.full((count, *weight.shape[2:], 3), 0.5)
        scaled = weight[:count].permute(0, 2, 3, 1) / (2 * weight.abs().max().clamp_min(1e-30))
        titles = [str(oc) for oc in range(count)]
        if groups == 1:
            color += scaled
        for oc in range(count if groups == 3 else 0):
            channel = oc * 3 // len(weight)
            color[oc, :, :, channel] += scaled[oc, :, :, 0]
            titles[oc] += f", {COLOURS[channel]}"
        return Pictures(weight[:count].mean(1), titles, columns, suptitle=title, color=color).show()
    images = weight.flatten(0, 1)[:most]
    inputs = weight.shape[1]
    titles = [f"{i // inputs}" + f", {i % inputs}" * (inputs > 1) for i in range(len(images))]
    return Pictures(images, titles, columns, signed=True, suptitle=title).show()


def show_feature_maps(
    model: Module, x: Tensor, layer: str | int, most: int = 64, columns: int = 8, image: int = 0
) -> Pictures:
    """Draws what a layer makes of an image, one picture a channel.

    Args:
        x: (N, C, H, W) or (C, H, W); `image` says which of the batch.
        layer: name or number of the layer; of several calls the last is drawn.

    Raises:
        ValueError: there is no such layer, or its output has no pixels.

    >>> from pyconv import data, inspect, models
    >>> digits = data.load("mnist").test.images[:1]
    >>> inspect.show_feature_maps(models.LeNet5(), digits, "pool1").images.shape
    torch.Size([6, 14, 14])
    """
    name, module = layer_of(model, layer)
    with untouched(model):
        found = calls(model, x[None] if x.dim() == 3 else x, copy=True)
    outputs = [first_tensor(call.output) for call in found if call.layer is module]
    if not outputs:
        raise ValueError(f"show_feature_maps: {name} was not called")
    y = outputs[-1]
    if y is None or y.dim() != 4:
        raise ValueError(
            f"show_feature_maps: the output of {name} has no pixels: {y if y is None else tuple(y.shape)}"
        )
    maps = y[image].detach().float().cpu()[:most]
    signed = bool((maps < 0).any())
    titles = [str(i) for i in range(len(maps))]
    title = f"{name}: {'x'.join(map(str, y.shape[1:]))}"
    return Pictures(maps, titles, columns, signed, title).show()


def show_channels(image: Tensor, names: tuple[str, ...] = COLOURS) -> Pictures:
    """Draws a colour image (3, H, W) and its channels, each in its own colour.

    >>> from pyconv import inspect
    >>> import torch
    >>> inspect.show_channels(torch.rand(3, 8, 8)).titles
    ['all', 'red', 'green', 'blue']
    """
    if image.dim() != 3 or len(image) != 3:
        raise ValueError(f"show_channels: image must be (3, H, W), got {tuple(image.shape)}")
    picture = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0)  # (H, W, 3)
    color = picture[None].repeat(4, 1, 1, 1)
    for channel in range(3):
        for other in range(3):
            if other != channel:
                color[channel + 1, :, :, other] = 0
    gray = image.detach().float().cpu()
    images = gray.mean(0, keepdim=True).expand(1, *gray.shape[1:])
    return Pictures(torch.cat([images, gray]), ["all", *names], 4, color=color).show()
