"""Statistics of activations while a model trains, cheap enough to leave on.

Source: J. Howard, S. Gugger, Deep Learning for Coders with fastai and PyTorch, 2020, chapter 13,
"Increase batch size": the colourful dimension is theirs, with S. Giomo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv.inspect._extras import axes, pyplot
from pyconv.inspect._walk import calls, first_tensor, leaves, untouched

_CHUNK = 32  # steps whose samples wait to be counted together: counting each alone is 4 ops a layer


@dataclass
class DeadUnits:
    """Units (channels, or features of a linear layer) that stayed near zero for a whole batch."""

    layer: str
    dead: list[int]
    units: int

    def __str__(self) -> str:
        which = f": {', '.join(map(str, self.dead))}" if self.dead else ""
        return f"{self.layer}: {len(self.dead)} of {self.units} dead{which}"


class _Layer:
    """The samples of one layer, and what was counted of them."""

    def __init__(self, stats: ActivationStats) -> None:
        self.stats = stats
        self.steps = 0
        self.counted: list[Tensor] = []  # of (steps, 3 + bins)
        self._shape: torch.Size | None = None  # of the outputs that the samples below are of
        self._stride = self._size = 1
        self._samples = torch.empty(0)  # (_CHUNK, size)
        self._rows: tuple[Tensor, ...] = ()  # of them
        self._filled = 0

    def add(self, y: Tensor) -> None:
        """Keep a sample: every k-th value as they lie in memory, from another start at each step."""
        y = y.detach()
        dense = y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)
        if not dense:
            y = y.contiguous()
        if y.shape != self._shape:
            self._prepare(y)
        start = y.storage_offset() + self.steps * 7919 % self._stride  # a prime: starts lie apart
        self._rows[self._filled].copy_(y.as_strided((self._size,), (self._stride,), start))
        self.steps += 1
        self._filled += 1
        if self._filled == _CHUNK:
            self.count()

    def _prepare(self, y: Tensor) -> None:
        self.count()
        most = self.stats.sample
        few = most is None or y.numel() <= most
        self._stride = 1 if few else coprime(y.numel() // (most or 1), math.prod(y.shape[1:]))
        self._size = y.numel() // self._stride
        self._samples = torch.empty(_CHUNK, self._size, dtype=y.dtype, device=y.device)
        self._rows = self._samples.unbind()
        self._shape = y.shape

    def count(self) -> None:
        if self._filled:
            self.counted.append(self.stats.measure(self._samples[: self._filled]))
            self._filled = 0

    def table(self) -> Tensor:
        self.count()
        if not self.counted:
            return torch.zeros(0, 3 + self.stats.bins)
        return torch.cat(self.counted)


def coprime(at_least: int, to: int) -> int:
    """The smallest step from `at_least` on that shares no factor with `to`, so that it visits all."""
    step = max(at_least, 1)
    while math.gcd(step, to) > 1:
        step += 1
    return step


class ActivationStats:
    """Mean, standard deviation, share near zero and histogram of every layer's output, per step.

    A context manager; or `close()` it. It looks only while a layer is in training mode. Of outputs
    with more than `sample` values it takes a sample spread evenly over image, channels and batch,
    which costs a few microseconds per layer: means then err by about std / sqrt(sample).

    Args:
        model: any model; its layers are the modules without modules inside.
        sample: values per layer and step, None for all.
        bins: of the histograms of `|y|`.
        limit: where the last bin ends; it also counts all beyond.
        near: `|y|` below this is near zero.

    >>> import torch
    >>> from pyconv import inspect, models, nn
    >>> model = torch.nn.Sequential(nn.Conv2d(1, 4, 3), torch.nn.ReLU())
    >>> with inspect.ActivationStats(model) as stats:
    ...     for step in range(5):
    ...         _ = model(torch.randn(8, 1, 12, 12))
    >>> stats.names
    ['0', '1']
    >>> stats.mean(1).shape, stats.histogram(1).shape
    (torch.Size([5]), torch.Size([5, 40]))
    >>> bool((stats.near_zero(1) > 0.3).all())  # ReLU makes zeros
    True
    """

    def __init__(
        self,
        model: Module,
        sample: int | None = 1024,
        bins: int = 40,
        limit: float = 10.0,
        near: float = 0.05,
    ) -> None:
        self.model, self.sample = model, sample
        self.bins, self.limit, self.near = bins, limit, near
        found = leaves(model)
        self.names = [name for name, _ in found]
        self._layers = [_Layer(self) for _ in self.names]
        self._handles = [
            module.register_forward_hook(self._hook(layer))
            for layer, (_, module) in zip(self._layers, found)
        ]

    @staticmethod
    def _hook(layer: _Layer) -> Any:
        def hook(module: Module, args: Any, output: Any) -> None:
            y = output if isinstance(output, Tensor) else first_tensor(output)
            if module.training and y is not None and y.is_floating_point() and y.numel():
                layer.add(y)

        return hook

    def measure(self, samples: Tensor) -> Tensor:
        """(steps, 3 + bins): mean, standard deviation, share near zero and counts of (steps, values)."""
        steps, values = samples.shape
        samples = samples.float() if samples.dtype in (torch.float16, torch.bfloat16) else samples
        mean = samples.mean(1)  # torch.std_mean takes ten times as long as these three lines
        std = torch.linalg.vector_norm(samples - mean[:, None], dim=1) / values**0.5
        absolute = samples.abs()
        near = (absolute < self.near).sum(1) / values
        places = absolute.mul_(self.bins / self.limit).nan_to_num_(nan=math.inf)
        # The last bin has all beyond it, and what is no number.
        places = places.clamp_(max=self.bins - 1).int()
        places += self.bins * torch.arange(steps, device=places.device, dtype=torch.int32)[:, None]
        counts = places.flatten().bincount(minlength=steps * self.bins).view(steps, self.bins)
        moments = torch.stack([mean, std, near.to(mean.dtype)], 1)
        return torch.cat([moments.float(), counts.float()], 1).cpu()

    def close(self) -> None:
        """Look no more; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> ActivationStats:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _table(self, layer: int | str) -> Tensor:
        if isinstance(layer, str):
            if layer not in self.names:
                raise ValueError(f"there is no layer {layer!r}; there are {', '.join(self.names)}")
            layer = self.names.index(layer)
        return self._layers[layer].table()

    def mean(self, layer: int | str) -> Tensor:
        """(steps,)."""
        return self._table(layer)[:, 0]

    def std(self, layer: int | str) -> Tensor:
        """(steps,)."""
        return self._table(layer)[:, 1]

    def near_zero(self, layer: int | str) -> Tensor:
        """(steps,): the share of values with `|y| < near`."""
        return self._table(layer)[:, 2]

    def histogram(self, layer: int | str) -> Tensor:
        """(steps, bins): how many `|y|` fell into each of the bins of [0, limit], the last open."""
        return self._table(layer)[:, 3:]

    def plot_layer_stats(self, layer: int | str, axs: Any = None, steps: int | None = None) -> Any:
        """Mean, standard deviation and share near zero over all or the first steps; returns the three axes."""
        if axs is None:
            axs = pyplot().subplots(1, 3, figsize=(10, 2.6), layout="constrained")[1]
        name = layer if isinstance(layer, str) else self.names[layer]
        rows = (
            ("mean", self.mean),
            ("standard deviation", self.std),
            ("near zero", self.near_zero),
        )
        for ax, (title, values) in zip(axs, rows):
            ax.plot(values(layer)[:steps].numpy())
            ax.set(title=f"{name}: {title}", xlabel="step")
            ax.grid(alpha=0.3)
        axs[2].set_ylim(-0.03, 1.03)
        return axs

    def color_dim(self, layer: int | str, ax: Any = None, steps: int | None = None) -> Any:
        """The colourful dimension: log(1 + histogram) of all or the first steps, each a column; returns the axes.

        Healthy training is a smooth fan; a bright line at the bottom that spreads and collapses
        again and again is a layer that is being lost.
        """
        ax = axes(ax, figsize=(6, 2.6))
        name = layer if isinstance(layer, str) else self.names[layer]
        columns = self.histogram(layer)[:steps].log1p().T  # (bins, steps)
        ax.imshow(
            columns.numpy(),
            origin="lower",
            aspect="auto",
            extent=(0, max(columns.shape[1], 1), 0, self.limit),
            interpolation="nearest",
        )
        ax.set(title=f"{name}: log(1 + count)", xlabel="step", ylabel="|activation|")
        return ax

    def dead_units(self, x: Tensor, near: float = 0.0) -> list[DeadUnits]:
        """For every layer, the units with `|y| <= near` wherever they stand, for the whole batch x.

        A unit is a channel of (N, C, H, W) or a feature of (N, C). Runs the model once, in
        evaluation mode; exact, unlike the samples.
        """
        with untouched(self.model):
            found = []
            for call in calls(self.model, x, copy=True):
                y = first_tensor(call.output)
                if y is None or y.dim() < 2 or not y.is_floating_point():
                    continue
                largest = y.abs().transpose(0, 1).flatten(1).amax(1)  # (C,)
                dead = (largest <= near).nonzero().flatten().tolist()
                found.append(DeadUnits(call.name, dead, len(largest)))
        return found
