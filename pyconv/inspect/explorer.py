"""One page with a whole network on one image: from a layer to a feature map to one output, summed by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv.inspect._follow import POINTWISE
from pyconv.inspect._page import encoded, framed, page
from pyconv.inspect._walk import Call, calls, first_tensor, geometry, untouched

nn = torch.nn
_MOST = 64 << 20  # bytes of numbers in a page: browsers still open it


@dataclass
class Explorer:
    """The page that `explorer` wrote."""

    path: Path
    bytes: int
    seconds: float
    layers: list[str]
    exact: list[str]  # of them, those whose outputs the page can sum by hand

    def _repr_html_(self) -> str:
        return framed(self.path.read_text(encoding="utf-8"), height=1000)


def explorer(
    model: Module, image: Tensor, path: str | Path, labels: Sequence[str] | None = None
) -> Explorer:
    """Writes one self-contained HTML file; it needs no other file and no network.

    A person clicks from the network to a feature map to one output, and sees the window, the weights,
    the products and the sum, beside what the model computed. Convolutions, poolings, batch norm (in
    evaluation mode), linear layers and what works value by value are taken apart; of other layers,
    and of what is computed between layers, the page shows results.

    Args:
        image: (C, H, W) or (1, C, H, W).
        labels: names of the model's outputs.

    Raises:
        ValueError: not one image; or the numbers would fill more than 64 MiB.

    >>> import tempfile
    >>> from pyconv import data, inspect, models
    >>> digit = data.load("mnist").test.images[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = inspect.explorer(models.LeNet5(), digit, folder + "/out.html")
    ...     text = written.path.read_text()
    >>> len(written.layers), written.exact == written.layers
    (12, True)
    >>> "http" in text
    False
    """
    began = time.perf_counter()
    image = image[None] if image.dim() == 3 else image
    if image.dim() != 4 or len(image) != 1:
        raise ValueError(
            f"explorer: image must be (C, H, W) or (1, C, H, W), got {tuple(image.shape)}"
        )
    with untouched(model):
        found = calls(model, image, copy=True)
    collected = _Collected()
    collected.add(image, image)
    layers = [_layer(call, collected) for call in found]
    if collected.bytes > _MOST:
        raise ValueError(
            f"explorer: the numbers would fill {collected.bytes >> 20} MiB, more than {_MOST >> 20}:"
            " take a smaller image or model"
        )
    title = f"{type(model).__name__} on one image of {'x'.join(map(str, image.shape[1:]))}"
    content = {
        "title": title,
        "layers": layers,
        "tensors": collected.tensors,
        "labels": list(labels or []),
    }
    path = Path(path)
    path.write_text(page(title, ["explorer.js"], content), encoding="utf-8")
    names = [layer["name"] for layer in layers]
    exact = [layer["name"] for layer in layers if layer["op"]["kind"] != "other"]
    return Explorer(path, path.stat().st_size, time.perf_counter() - began, names, exact)


class _Collected:
    """The tensors of the page, each once, by the object that the layers passed on."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.bytes = 0
        # By id, the object kept beside its number, so that the id stays its own.
        self._known: dict[int, tuple[Any, int]] = {}

    def put(self, values: Tensor) -> int:
        """The number of a tensor (C, H, W), (F,) or of parameters."""
        self.bytes += values.numel() * 4
        self.tensors.append(encoded(values) if self.bytes <= _MOST else None)
        return len(self.tensors) - 1

    def add(self, thing: Any, values: Tensor) -> int:
        """An output: `values` is what `thing` was when it was made."""
        self._known[id(thing)] = thing, self.put(values[0])
        return self._known[id(thing)][1]

    def of(self, thing: Any, values: Tensor) -> int:
        """The number of an input: the output it is, or a tensor of its own."""
        known = self._known.get(id(thing))
        return known[1] if known else self.add(thing, values)


def _layer(call: Call, collected: _Collected) -> dict[str, Any]:
    x, y = first_tensor(call.inputs), first_tensor(call.output)
    record: dict[str, Any] = {
        "name": call.name,
        "kind": type(call.layer).__name__,
        "text": str(call.layer),
    }
    if x is None or y is None:
        return {**record, "x": None, "y": None, "op": {"kind": "other"}}
    op = _operation(call, x, y, collected)
    record["x"] = collected.of(first_tensor(call.received), x)
    record["y"] = collected.add(first_tensor(call.produced), y)
    return {**record, "op": op}


def _operation(call: Call, x: Tensor, y: Tensor, collected: _Collected) -> dict[str, Any]:
    layer: Any = call.layer
    tensors = [t for t in call.inputs if isinstance(t, Tensor)]
    if len(tensors) > 1:
        return {"kind": "other"}  # a fused layer with a shortcut
    if isinstance(layer, nn.Conv2d):
        return _conv(layer, x, collected)
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) and x.dim() == 4:
        return {
            "kind": "max" if isinstance(layer, nn.MaxPool2d) else "avg",
            **_geometry(layer),
            "count_include_pad": getattr(layer, "count_include_pad", False),
            "divisor": getattr(layer, "divisor_override", None),
        }
    if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return {
            "kind": "adaptive_avg" if isinstance(layer, nn.AdaptiveAvgPool2d) else "adaptive_max"
        }
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        if layer.running_mean is None or layer.running_var is None:
            return {"kind": "other"}
        one, zero = torch.ones_like(layer.running_mean), torch.zeros_like(layer.running_mean)
        parts = {
            "mean": layer.running_mean,
            "var": layer.running_var,
            "w": one if layer.weight is None else layer.weight,
            "b": zero if layer.bias is None else layer.bias,
        }
        return {"kind": "norm", "eps": layer.eps, **{k: collected.put(v) for k, v in parts.items()}}
    if isinstance(layer, nn.Linear) and x.dim() == 2:
        bias = None if layer.bias is None else collected.put(layer.bias)
        return {"kind": "linear", "w": collected.put(layer.weight), "b": bias}
    if isinstance(layer, nn.Flatten) and x[0].numel() == y[0].numel():
        return {"kind": "flatten"}
    pointwise = isinstance(layer, POINTWISE) and x.shape == y.shape
    return {"kind": "value" if pointwise else "other"}


def _geometry(layer: Any) -> dict[str, tuple[int, int]]:
    pairs = zip(geometry(layer, 0), geometry(layer, 1))
    return dict(zip(("kernel", "stride", "padding", "dilation"), pairs))


def _conv(layer: nn.Conv2d, x: Tensor, collected: _Collected) -> dict[str, Any]:
    of_window = _geometry(layer)
    padded = None  # the image, where padding is not zeros
    ceiling = getattr(layer, "ceiling", math.inf)
    if layer.padding_mode != "zeros":
        pads = layer._reversed_padding_repeated_twice
        padded = collected.put(nn.functional.pad(x, pads, layer.padding_mode)[0])
        of_window["padding"] = (0, 0)
    return {
        "kind": "conv",
        **of_window,
        "groups": layer.groups,
        "relu": getattr(layer, "relu", False) is True,
        "ceiling": ceiling if math.isfinite(ceiling) else None,
        "source": padded,
        "w": collected.put(layer.weight),
        "b": None if layer.bias is None else collected.put(layer.bias),
    }
