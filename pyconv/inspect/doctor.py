"""The shape doctor: when sizes do not fit, which layer, by which formula, and what would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv._shapes import ShapeError, pair, same_padding
from pyconv.inspect._walk import first_tensor, geometry, leaves, untouched

nn = torch.nn
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
Size = tuple[int, ...]


@dataclass
class Step:
    """One layer call that worked."""

    name: str
    layer: Module
    input: Size
    output: Size

    def __str__(self) -> str:
        return (
            f"{self.name:<16} {type(self.layer).__name__:<18} {_x(self.input)} -> {_x(self.output)}"
        )


class shape_doctor:
    """A context in which a model's size errors are explained, layer, formula and remedy.

    The error is a `pyconv.ShapeError`, caused by the one that the layer raised.

    >>> import torch
    >>> from pyconv import inspect, models
    >>> with inspect.shape_doctor(model := models.LeNet5()):
    ...     model(torch.randn(1, 1, 8, 8))
    Traceback (most recent call last):
        ...
    pyconv._shapes.ShapeError: conv2 (Conv2d 5x5): its input is 1x6x4x4, and
        OH = floor((IH + 2*padding - dilation*(kernel - 1) - 1) / stride) + 1
           = floor((4 + 2*0 - 1*(5 - 1) - 1) / 1) + 1 = 0
    must be at least 1. padding=1 would work: OH = 2; padding=2 would keep the size: OH = 4.
    The image went 8x8 -> conv1 8x8 -> pool1 4x4.
    """

    def __init__(self, model: Module) -> None:
        self.model = model
        self.steps: list[Step] = []
        self._under_way: list[tuple[str, Module, Any]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> shape_doctor:
        self._handles.append(self.model.register_forward_pre_hook(self._start))
        for name, layer in leaves(self.model):
            self._handles.append(layer.register_forward_pre_hook(self._before(name)))
            self._handles.append(layer.register_forward_hook(self._after))
        return self

    def _start(self, model: Module, args: Any) -> None:
        self.steps, self._under_way = [], []

    def _before(self, name: str) -> Callable[..., None]:
        def before(layer: Module, args: Any) -> None:
            self._under_way.append((name, layer, args))

        return before

    def _after(self, layer: Module, args: Any, output: Any) -> None:
        name, _, given = self._under_way.pop()
        x, y = first_tensor(given), first_tensor(output)
        if x is not None and y is not None:
            self.steps.append(Step(name, layer, tuple(x.shape), tuple(y.shape)))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not isinstance(error, (RuntimeError, ValueError, IndexError)):
            return
        if self._under_way:
            name, layer, args = self._under_way[-1]
            x = first_tensor(args)
            found = _diagnosis(name, layer, tuple(x.shape), self.steps) if x is not None else None
        else:
            found = _between(error, self.steps)
        if found:
            raise ShapeError(found) from error


def check_shapes(model: Module, x: Tensor) -> list[Step]:
    """The sizes that go through a model, or the error that says where and why they do not fit.

    Raises:
        ShapeError: which layer, its formula with the numbers in it, and what would fit.

    >>> import torch
    >>> from pyconv import inspect, models
    >>> print(inspect.check_shapes(models.LeNet5(), torch.randn(1, 1, 28, 28))[0])
    conv1            Conv2d             1x1x28x28 -> 1x6x28x28
    >>> inspect.check_shapes(models.LeNet5(), torch.randn(1, 1, 32, 32))
    Traceback (most recent call last):
        ...
    pyconv._shapes.ShapeError: fc1 (Linear): it takes 400 features and was given 576 = 16 x 6 x 6.
    in_features=576 would fit; so would padding=1 in conv1, for 16 x 5 x 5 = 400.
    The image went 32x32 -> conv1 32x32 -> pool1 16x16 -> conv2 12x12 -> pool2 6x6.
    """
    with untouched(model), torch.no_grad(), shape_doctor(model) as doctor:
        model(x)
    return doctor.steps


def _x(size: Size) -> str:
    return "x".join(map(str, size))


def _diagnosis(name: str, layer: Module, x: Size, steps: list[Step]) -> str | None:
    if isinstance(layer, nn.Conv2d):
        return _channels(name, layer, x) or _window(name, layer, x, steps)
    if isinstance(layer, _POOLS):
        return _window(name, layer, x, steps)
    if isinstance(layer, nn.Linear):
        return _features(name, layer, x, steps)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and len(x) > 1:
        if x[1] != layer.num_features:
            return (
                f"{name} ({type(layer).__name__}): it takes {layer.num_features} channels and was given"
                f" {x[1]}, its input being {_x(x)}. num_features={x[1]} would fit."
            )
        return None
    return f"{name} ({type(layer).__name__}): it cannot take its input of {_x(x)}.{_way(steps)}"


def _between(error: BaseException, steps: list[Step]) -> str | None:
    """An error outside of all layers, if it is about sizes: a sum with a shortcut, a view."""
    words = str(error)
    if not steps or not any(word in words for word in ("size", "shape", "dimension")):
        return None
    last = "; ".join(f"{s.name} gave {_x(s.output)}" for s in steps[-3:])
    return f"between two layers: {words}. Before that, {last}."


def _channels(name: str, layer: nn.Conv2d, x: Size) -> str | None:
    if len(x) not in (3, 4):
        return f"{name} (Conv2d): its input must be (N, C, H, W) or (C, H, W), and is {_x(x)}."
    if x[-3] == layer.in_channels:
        return None
    text = (
        f"{name} (Conv2d): it takes {layer.in_channels} channels and was given {x[-3]}, its input"
        f" being {_x(x)}. in_channels={x[-3]} would fit"
    )
    if x[-1] == layer.in_channels and len(x) == 4:
        text += "; or the channels are last, and x.permute(0, 3, 1, 2) would put them second"
    return text + "."


def output_size(
    layer: Module, size: tuple[int, int], padding: int | None = None
) -> tuple[int, int]:
    """(OH, OW) that a layer makes of (IH, IW), with another padding if one is given."""
    if isinstance(layer, _ADAPTIVE):
        wanted: Any = layer.output_size
        both = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        return both[0] or size[0], both[1] or size[1]
    if not isinstance(layer, (nn.Conv2d, *_POOLS)):
        return size
    sizes = []
    for axis in (0, 1):
        kernel, stride, pad, dilation = geometry(layer, axis)
        total = 2 * (pad if padding is None else padding)
        if padding is None and layer.padding == "same":
            kh, kw = pair("", "", layer.kernel_size), pair("", "", layer.dilation)
            total = sum(same_padding(kh, kw)[2 - 2 * axis : 4 - 2 * axis])
        span = size[axis] + total - dilation * (kernel - 1) - 1
        out = (-(-span // stride) if getattr(layer, "ceil_mode", False) else span // stride) + 1
        if getattr(layer, "ceil_mode", False) and (out - 1) * stride >= size[axis] + total // 2:
            out -= 1  # a window that would start in the padding
        sizes.append(out)
    return sizes[0], sizes[1]


def _window(name: str, layer: Any, x: Size, steps: list[Step]) -> str | None:
    size = (x[-2], x[-1])
    made = output_size(layer, size)
    axis = 0 if made[0] < 1 else 1
    if made[axis] >= 1:
        return None
    kernel, stride, padding, dilation = geometry(layer, axis)
    letter, rounds = "HW"[axis], "ceil" if getattr(layer, "ceil_mode", False) else "floor"
    both = _x(pair("", "", layer.kernel_size))
    text = (
        f"{name} ({type(layer).__name__} {both}): its input is {_x(x)}, and\n"
        f"    O{letter} = {rounds}((I{letter} + 2*padding - dilation*(kernel - 1) - 1) / stride) + 1\n"
        f"       = {rounds}(({size[axis]} + 2*{padding} - {dilation}*({kernel} - 1) - 1) / {stride}) + 1"
        f" = {made[axis]}\nmust be at least 1. "
    )
    most = kernel // 2 if isinstance(layer, _POOLS) else dilation * (kernel - 1) + 1
    works = [p for p in range(padding + 1, most + 1) if min(output_size(layer, size, p)) >= 1]
    if works:
        text += (
            f"padding={works[0]} would work: O{letter} = {output_size(layer, size, works[0])[axis]}"
        )
        same = [p for p in works if output_size(layer, size, p)[axis] == size[axis]]
        if same and same[0] != works[0]:
            text += f"; padding={same[0]} would keep the size: O{letter} = {size[axis]}"
        text += "."
    else:
        least = (size[axis] + 2 * padding - 1) // dilation + 1
        text += (
            f"A pooling's padding is at most half its kernel, and that is not enough: the kernel must be"
            f" {least} or smaller, or the image larger."
        )
    return text + _way(steps, "\n")


def _way(steps: list[Step], before: str = " ") -> str:
    """The sizes of the image on its way here."""
    sizes = [s for s in steps if len(s.input) == 4 and len(s.output) == 4]
    if not sizes:
        return ""
    told = [_x(sizes[0].input[2:])]
    told += [
        f"{s.name} {_x(s.output[2:])}"
        for s in sizes
        if isinstance(s.layer, (nn.Conv2d, *_POOLS, *_ADAPTIVE))
    ]
    return f"{before}The image went {' -> '.join(told)}."


def _features(name: str, layer: nn.Linear, x: Size, steps: list[Step]) -> str | None:
    takes, given = layer.in_features, x[-1]
    if takes == given:
        return None
    if len(x) == 4 and x[1] * x[2] * x[3] == takes:
        return (
            f"{name} (Linear): it takes {takes} features and was given {_x(x)}, of which it sees the last"
            f" size, {given}. A Flatten before it would give {x[1]} x {x[2]} x {x[3]} = {takes}."
        )
    image = next((s.output for s in reversed(steps) if len(s.output) == 4), None)
    product = ""
    if image and image[1] * image[2] * image[3] == given:
        product = f" = {image[1]} x {image[2]} x {image[3]}"
    text = (
        f"{name} (Linear): it takes {takes} features and was given {given}{product}.\n"
        f"in_features={given} would fit"
    )
    others = _paddings(takes, image, steps) if product and image else []
    text += f"; so would {', or '.join(others)}." if others else "."
    return text + _way(steps, "\n")


def _paddings(takes: int, image: Size, steps: list[Step]) -> list[str]:
    """Which other padding of one convolution would give as many features, if layers are in a row."""
    chain = [s for s in steps if len(s.input) == 4 and len(s.output) == 4]

    def end(changed: int = -1, padding: int | None = None) -> tuple[int, int]:
        size = (chain[0].input[2], chain[0].input[3])
        for number, step in enumerate(chain):
            size = output_size(step.layer, size, padding if number == changed else None)
            if min(size) < 1:
                return 0, 0
        return size

    if end() != image[2:]:
        return []  # not a chain
    found = []
    for number, step in enumerate(chain):
        if not isinstance(step.layer, nn.Conv2d):
            continue
        now = geometry(step.layer, 0)[2]
        for padding in sorted(range(max(step.layer.kernel_size)), key=lambda p: abs(p - now)):
            h, w = end(number, padding)
            if padding != now and image[1] * h * w == takes:
                found.append(
                    f"padding={padding} in {step.name}, for {image[1]} x {h} x {w} = {takes}"
                )
                break
    return found
