"""Running a model once to see what its layers were given and gave, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv._shapes import pair


@dataclass(eq=False)
class Call:
    """One call of one layer; a layer that is called twice makes two."""

    name: str
    layer: Module
    inputs: tuple[Any, ...]
    output: Any
    # The very objects that came in and went out, where the others are copies: who fed whom.
    received: tuple[Any, ...] = ()
    produced: Any = None


def leaves(model: Module) -> list[tuple[str, Module]]:
    """(name, layer) of the layers that have no layers inside, in the order they were made."""
    found = [(name, m) for name, m in model.named_modules() if next(m.children(), None) is None]
    return [(name or type(model).__name__, m) for name, m in found]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor in what a layer returned."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        return next((t for t in map(first_tensor, value) if t is not None), None)
    if isinstance(value, dict):
        return first_tensor(list(value.values()))
    return None


def geometry(layer: Any, axis: int) -> tuple[int, int, int, int]:
    """(kernel, stride, padding, dilation) of a convolution or pooling along an axis.

    "same" pads an even reach by one more at the end; the padding here is that at the start.
    """

    def of(value: Any) -> int:
        return pair("", "", value)[axis]

    kernel, dilation = of(layer.kernel_size), of(getattr(layer, "dilation", 1))
    stride = of(layer.stride) if layer.stride is not None else kernel
    padding = layer.padding
    if isinstance(padding, str):
        return kernel, stride, 0 if padding == "valid" else dilation * (kernel - 1) // 2, dilation
    return kernel, stride, of(padding), dilation


@contextmanager
def untouched(model: Module, training: bool | None = False) -> Iterator[None]:
    """The model in evaluation mode (or as `training` says, None: as it is), restored afterwards.

    Restored are the mode of every layer, buffers such as running statistics, and the random state.
    """
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    if training is not None:
        model.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def calls(model: Module, *inputs: Any, copy: bool = False) -> list[Call]:
    """What every layer without layers inside was given and gave, in the order of the calls.

    Args:
        copy: keep copies, which layers that work in place do not change later.
    """
    names = {layer: name for name, layer in leaves(model)}
    given: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
    found: list[Call] = []

    def kept(value: Any) -> Any:
        return value.detach().clone() if copy and isinstance(value, Tensor) else value

    def before(layer: Module, args: tuple[Any, ...]) -> None:
        given.append((tuple(map(kept, args)), args))

    def after(layer: Module, args: tuple[Any, ...], output: Any) -> None:
        copies, received = given.pop()
        found.append(Call(names[layer], layer, copies, kept(output), received, output))

    handles = [layer.register_forward_pre_hook(before) for layer in names]
    handles += [layer.register_forward_hook(after) for layer in names]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_of(model: Module, layer: str | int) -> tuple[str, Module]:
    """(name, layer) by name, or by number among the layers that have none inside.

    Raises:
        ValueError: there is no such layer.
    """
    found = leaves(model)
    if isinstance(layer, int):
        if not -len(found) <= layer < len(found):
            raise ValueError(f"layer must be below {len(found)}, the number of layers, got {layer}")
        return found[layer]
    for name, module in found:
        if name == layer:
            return name, module
    raise ValueError(f"there is no layer {layer!r}; there are {', '.join(n for n, _ in found)}")
