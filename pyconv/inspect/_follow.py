"""Following pixels through a model: for every position of every output, which of the image it sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from pyconv.inspect._walk import first_tensor, geometry, leaves

nn = torch.nn
Span = list[tuple[int, int]]  # first and last pixel that each position of an axis sees
Spans = tuple[Span, Span]  # down, across
NOTHING = (1 << 30, -1)  # the span of a position that sees no pixel


@dataclass
class Field:
    """The receptive field of one layer's outputs, along the height and the width of the image."""

    name: str
    kind: str
    output: tuple[int, ...]
    spans: Spans

    @property
    def size(self) -> tuple[int, int]:
        """Pixels that a unit sees, in the middle; near the border and beyond the image there are fewer."""
        down, across = (max(last - first + 1 for first, last in span) for span in self.spans)
        return down, across

    @property
    def jump(self) -> tuple[int, int]:
        """Pixels between the fields of neighbouring units; 0 where there are no neighbours."""
        down, across = (_jump(span) for span in self.spans)
        return down, across

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of what the unit at (row, column) sees, all included."""
        (top, bottom), (left, right) = self.spans[0][row], self.spans[1][column]
        return top, left, bottom, right


def _jump(span: Span) -> int:
    middle = len(span) // 2
    if len(span) < 2:
        return 0
    return max(abs(span[middle][end] - span[middle - 1][end]) for end in (0, 1))


# Layers that treat each pixel alone. Whatever is neither here nor has a window is asked by its gradient.
POINTWISE = (
    nn.modules.batchnorm._BatchNorm, nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
_WINDOWED = (
    "conv",
    "pool",
    "unfold",
    "fold",
    "interpolate",
    "upsample",
    "grid_sample",
    "attention",
)


class Follow(TorchFunctionMode):
    """Remembers of every tensor which pixels each of its positions sees."""

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model
        self.fields: list[Field] = []
        self.known: dict[int, tuple[Tensor, Spans]] = {}  # by id, the tensor kept alive
        self.inside = 0  # of a layer, whose own calls are its own affair

    def know(self, tensor: Tensor, spans: Spans) -> None:
        self.known[id(tensor)] = tensor, spans

    def of(self, value: Any) -> Spans | None:
        found = self.known.get(id(value)) if isinstance(value, Tensor) else None
        return found[1] if found else None

    def hooks(self) -> Any:
        """A context in which every layer reports."""
        stack = ExitStack()
        for name, layer in leaves(self.model):
            before = layer.register_forward_pre_hook(self._enter)
            after = layer.register_forward_hook(self._leave(name))
            stack.callback(before.remove)
            stack.callback(after.remove)
        return stack

    def _enter(self, layer: Module, args: Any) -> None:
        self.inside += 1

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(layer: Module, args: Any, output: Any) -> None:
            given = [s for s in map(self.of, args) if s is not None]
            y = first_tensor(output)
            if not given or y is None:
                self.inside -= 1
                if y is not None and y.dim() == 4:
                    raise NotImplementedError(
                        f"receptive_field: what {name} is given comes from an operator that is called"
                        " as a function, whose windows are not known: make it a layer"
                    )
                return
            spans = _through(layer, given, first_tensor(args), y)
            self.inside -= 1
            self.know(y, spans)
            self.fields.append(Field(name, type(layer).__name__, tuple(y.shape), spans))

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.inside or not isinstance(result, Tensor):
            return result
        flat = [t for a in (*args, *(kwargs or {}).values())
                for t in (a if isinstance(a, (tuple, list)) else [a])]  # fmt: skip
        given = [(t, s) for t, s in ((t, self.of(t)) for t in flat) if s is not None]
        if given:
            name = getattr(func, "__name__", str(func))
            if any(word in name for word in _WINDOWED):
                raise NotImplementedError(
                    f"receptive_field: {name} is called as a function, and only the windows of layers"
                    " are known: make it a layer"
                )
            moved = _moved(name, args, kwargs or {}, given[0][1])
            parts = [moved] if moved else [_fitted(t, s, result) for t, s in given]
            self.know(result, _union(parts, result))
        return result


def _moved(name: str, args: Any, kwargs: Any, spans: Spans) -> Spans | None:
    """The spans after a slice or a padding with zeros of (N, C, H, W); None for what is neither."""
    if name == "__getitem__" and args[0].dim() == 4:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = (*index[:at], *[slice(None)] * (5 - len(index)), *index[at + 1 :])
        index = (*index, *[slice(None)] * (4 - len(index)))
        if all(isinstance(i, slice) for i in index):
            rows, columns = index[2], index[3]
            assert isinstance(rows, slice)
            assert isinstance(columns, slice)
            return spans[0][rows], spans[1][columns]
    if name == "pad" and args[0].dim() == 4 and kwargs.get("mode", "constant") == "constant":
        before = [*(args[1] if len(args) > 1 else kwargs["pad"]), 0, 0, 0, 0]
        if len(args) < 3 and min(before) >= 0:
            left, right, top, bottom = ([NOTHING] * n for n in before[:4])
            return [*top, *spans[0], *bottom], [*left, *spans[1], *right]
    return None


def _whole(span: Span) -> tuple[int, int]:
    return min(first for first, _ in span), max(last for _, last in span)


def _fitted(source: Tensor, spans: Spans, result: Tensor) -> Spans:
    """The spans for a result of another shape: where the pixels cannot be told apart, all of them."""
    if result.dim() == 4 and source.dim() == 4:
        down, across = (
            span if len(span) == size else [_whole(span)] * size
            for span, size in zip(spans, result.shape[2:])
        )
        return down, across
    return [_whole(spans[0])], [_whole(spans[1])]


def _union(parts: list[Spans], result: Tensor) -> Spans:
    def axis(number: int) -> Span:
        spans = [part[number] for part in parts]
        length = max(map(len, spans))
        spans = [span * length if len(span) == 1 else span for span in spans]
        return [(min(f for f, _ in at), max(last for _, last in at)) for at in zip(*spans)]

    return axis(0), axis(1)


def _through(layer: Module, given: list[Spans], x: Tensor | None, y: Tensor) -> Spans:
    """The spans of a layer's output."""
    assert x is not None
    if isinstance(layer, POINTWISE) or x.dim() != 4 or y.dim() != 4:
        return _union([_fitted(x, s, y) for s in given], y)
    down, across = _windows(layer, 0, x, y), _windows(layer, 1, x, y)
    if down is None or across is None:
        down, across = _probed(layer, x, y)
    reached = (
        [_over(given[0][0], seen) for seen in down],
        [_over(given[0][1], seen) for seen in across],
    )
    return _union([reached, *given[1:]], y)  # given[1]: a fused layer's shortcut


def _probed(layer: Module, x: Tensor, y: Tensor) -> Spans:
    """For every row and column of the output, which of the input have an influence, by gradient."""
    with torch.enable_grad():
        leaf = torch.randn_like(x).requires_grad_()
        out = first_tensor(layer.forward(leaf.clone()))
        assert out is not None
        axes_seen: list[Span] = []
        for axis in (2, 3):
            span = []
            for position in range(y.shape[axis]):
                part = out.select(axis, position)
                weights = torch.randn_like(part)
                (gradient,) = torch.autograd.grad((part * weights).sum(), leaf, retain_graph=True)
                met = gradient.abs().sum([0, 1, 5 - axis]).nonzero().flatten().tolist()
                span.append((met[0], met[-1]) if met else NOTHING)
            axes_seen.append(span)
    return axes_seen[0], axes_seen[1]


def _over(span: Span, seen: tuple[int, int]) -> tuple[int, int]:
    """What a window over positions seen[0] .. seen[1] sees; one wholly in the padding sees nothing."""
    met = span[max(seen[0], 0) : max(seen[1], -1) + 1]
    return _whole(met) if met else NOTHING


def _windows(layer: Module, axis: int, x: Tensor, y: Tensor) -> Span | None:
    """For every output of an axis, the first and last input that its window covers; None if no windows."""
    extent, outputs = x.shape[2 + axis], y.shape[2 + axis] if y.dim() == 4 else 1
    if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return [
            (o * extent // outputs, -(-(o + 1) * extent // outputs) - 1) for o in range(outputs)
        ]
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)):
        return None

    kernel, stride, padding, dilation = geometry(layer, axis)
    reach = dilation * (kernel - 1)
    if isinstance(layer, nn.ConvTranspose2d):
        # Input i reaches the outputs i * stride - padding and `reach` further.
        return [
            (-(-(o + padding - reach) // stride), (o + padding) // stride) for o in range(outputs)
        ]
    return [(o * stride - padding, o * stride - padding + reach) for o in range(outputs)]
