"""What each layer of a model is, costs and reaches: the summary table and the roofline plot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyconv import _native
from pyconv._explain import explain
from pyconv._explain_kernels import NAMES, Roof, roof
from pyconv._explain_memory import operator_of
from pyconv._timing import alternate
from pyconv.inspect._extras import (
    Shown,
    as_bytes,
    as_number,
    as_share,
    as_time,
    axes,
    rich_table,
    text_table,
)
from pyconv.inspect._walk import Call, calls, first_tensor, untouched
from pyconv.nn._algorithm import AlgorithmMixin


@dataclass
class Row:
    """One call of one layer. Times are seconds, sizes bytes; nan where nothing was measured."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int  # of its own; 0 where the layer was called before
    multiply_adds: int
    kernel: str  # of the forward pass; "torch" for torch's own, "" for layers that pyconv has not
    seconds: float
    bound: float  # no kernel is faster: the roofline
    moved: int  # input, parameters and output, each once
    memory: int  # parameters, output, and the scratch of the kernel
    backward_kernels: tuple[str, ...] = ()
    backward_seconds: float = math.nan
    backward_bound: float = math.nan

    @property
    def gflops(self) -> float:
        """2 * multiply_adds / seconds / 1e9."""
        return 2 * self.multiply_adds / self.seconds / 1e9

    @property
    def share(self) -> float:
        """Of the roofline: bound / seconds."""
        return self.bound / self.seconds

    @property
    def backward_share(self) -> float:
        return self.backward_bound / self.backward_seconds if self.backward_seconds else math.nan


@dataclass
class Summary(Shown):
    """What `summary` or `profile` found: print it, show it with rich, plot it, or read its rows."""

    rows: list[Row]
    parameters: int  # of the model, shared ones once, layers that were not called included
    roof: Roof | None
    backward: bool
    dtype: str
    threads: int
    head: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.head = ["layer", "kind", "output", "parameters", "multiply-adds", "kernel", "time",
                     "GFLOP/s", "of roof", "memory"]  # fmt: skip
        if self.backward:
            self.head += ["backward", "of roof", "kernels"]

    def cells(self) -> list[list[str]]:
        """The table as text, the last row its sums."""
        table = [self._cells(r) for r in self.rows]
        seconds = sum(r.seconds for r in self.rows)
        macs = sum(r.multiply_adds for r in self.rows)
        total = ["total", "", "", f"{self.parameters:,}", f"{macs:,}", "", as_time(seconds),
                 as_number(2 * macs / seconds / 1e9 if macs else math.nan), "",
                 as_bytes(sum(r.memory for r in self.rows))]  # fmt: skip
        if self.backward:
            total += [as_time(sum(r.backward_seconds for r in self.rows)), "", ""]
        return [*table, total]

    def _cells(self, r: Row) -> list[str]:
        macs = f"{r.multiply_adds:,}" if r.multiply_adds else ""
        cells = [r.name, r.kind, "x".join(map(str, r.output)), f"{r.parameters:,}" * bool(r.parameters),
                 macs, r.kernel, as_time(r.seconds), as_number(r.gflops if macs else math.nan),
                 as_share(r.share), as_bytes(r.memory)]  # fmt: skip
        if self.backward:
            kernels = ", ".join(dict.fromkeys(r.backward_kernels))
            cells += [as_time(r.backward_seconds), as_share(r.backward_share), kernels]
        return cells

    @property
    def title(self) -> str:
        text = f"{self.dtype}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.roof is None:
            return text
        return f"{text}; roof {self.roof.flops / 1e9:.0f} GFLOP/s, {self.roof.bandwidth / 1e9:.0f} GB/s"

    def __str__(self) -> str:
        return f"{self.title}\n{text_table(self.head, self.cells())}"

    def __rich__(self) -> Any:
        return rich_table(self.title, self.head, self.cells())

    def plot(self, ax: Any = None) -> Any:
        """The roofline: GFLOP/s over FLOP per byte, both logarithmic; returns the axes.

        Source: Williams, Waterman, Patterson, Roofline, CACM 52(4), 2009.
        """
        ax = axes(ax, figsize=(7, 4.5))
        rows = [r for r in self.rows if r.multiply_adds and r.seconds > 0]
        intensity = [2 * r.multiply_adds / r.moved for r in rows]
        if self.roof:
            ridge = self.roof.flops / self.roof.bandwidth
            low, high = min([ridge / 8, *intensity]) / 2, max([ridge * 8, *intensity]) * 2
            ax.plot(
                [low, ridge, high],
                [low * self.roof.bandwidth / 1e9, self.roof.flops / 1e9, self.roof.flops / 1e9],
                color="0.4",
                label="roofline",
            )
        for at, r in zip(intensity, rows):
            ax.plot(at, r.gflops, "o")
            ax.annotate(r.name, (at, r.gflops), (6, -3), textcoords="offset points", fontsize=8)
        ax.set(xscale="log", yscale="log", xlabel="FLOP per byte moved", ylabel="GFLOP/s",
               title=self.title)  # fmt: skip
        ax.grid(alpha=0.3)
        return ax


def summary(model: Module, x: Tensor, measure: bool = True) -> Summary:
    """What each layer does to x, and what that costs in inference.

    A layer is a module without modules inside; what a model computes outside of its layers is not
    seen. Multiply-adds are those of convolutions and linear layers. Each layer is timed alone, on
    the input it had; its bound is the roofline max(FLOP / roof, bytes / bandwidth), both measured
    on this machine. More than all of it is reached by what lies in a nearer cache, and by Winograd, which
    does fewer multiply-adds than the formula has. Mode, running statistics and random state of the model
    stay as they were.

    Args:
        model: any model.
        x: its input, as large as it will be: the batch decides times.
        measure: False leaves times and bounds out.

    >>> import torch
    >>> from pyconv import inspect, models, nn
    >>> table = inspect.summary(models.LeNet5(), torch.randn(1, 1, 28, 28))
    >>> table.parameters, sum(row.multiply_adds for row in table.rows)
    (61706, 416520)
    >>> [row.output for row in table.rows if row.kind == "Conv2d"]
    [(1, 6, 28, 28), (1, 16, 10, 10)]
    """
    return _table(model, x, measure, backward=False)


def profile(model: Module, x: Tensor, backward: bool = True) -> Summary:
    """As `summary`, in training mode and with the backward pass of each layer, for its `plot`.

    The backward pass makes the gradients of input and parameters, each of as many multiply-adds as
    the forward pass; the first layer's input needs none.

    >>> import torch
    >>> from pyconv import inspect, models, nn
    >>> found = inspect.profile(models.LeNet5(), torch.randn(4, 1, 28, 28))
    >>> all(row.backward_seconds > 0 for row in found.rows)
    True
    """
    return _table(model, x, measure=True, backward=backward)


def _table(model: Module, x: Tensor, measure: bool, backward: bool) -> Summary:
    with untouched(model, training=backward):
        seen: set[int] = set()
        found = calls(model, x)
        rows = [_row(call, seen, measure) for call in found]
        if backward:
            for number, (call, row) in enumerate(zip(found, rows)):
                _add_backward(call, row, number == 0)
    machine = _roof(x, max((r.moved for r in rows), default=0)) if measure else None
    parameters = sum(p.numel() for p in model.parameters())
    dtype = str(x.dtype).removeprefix("torch.")
    return Summary(rows, parameters, machine, backward, dtype, torch.get_num_threads())


def _row(call: Call, seen: set[int], measure: bool) -> Row:
    y, x = first_tensor(call.output), first_tensor(call.inputs)
    own = [p for p in call.layer.parameters(recurse=False) if id(p) not in seen]
    seen.update(map(id, own))
    weights = sum(p.nbytes for p in call.layer.parameters(recurse=False))
    moved = weights + sum(t.nbytes for t in (x, y) if t is not None)
    row = Row(
        name=call.name,
        kind=type(call.layer).__name__,
        output=tuple(y.shape) if y is not None else (),
        parameters=sum(p.numel() for p in own),
        multiply_adds=multiply_adds(call),
        kernel="torch" if _torchs(call.layer) else "",
        seconds=math.nan,
        bound=math.nan,
        moved=moved,
        memory=weights + (y.nbytes if y is not None else 0),
    )
    if not measure or x is None:
        return row
    if ours := _ours(call, x):
        chosen = ours.passes[0].chosen
        row.kernel = getattr(call.layer, "algorithm", None) or chosen
        row.memory += getattr(ours.passes[0], "workspace", {}).get(chosen, 0)
        row.backward_kernels = tuple(p.chosen for p in ours.passes[1:])
    row.bound = _bound(x, 2 * row.multiply_adds, moved)
    with torch.no_grad():
        call_again = {"": lambda: call.layer(*call.inputs)}
        row.seconds = alternate(call_again, 0.03, device=x.device.type)[""].median
    return row


def _ours(call: Call, x: Tensor) -> Any:
    """`explain` of a convolution, pooling or batch norm of ours on the CPU, else None."""
    layer = call.layer
    ours = isinstance(layer, AlgorithmMixin) and _asked(x)
    if not ours or not (
        isinstance(layer, torch.nn.Conv2d) or (operator_of(layer) and x.dim() == 4)
    ):
        return None
    inputs = 1 + isinstance(layer, torch.nn.MaxUnpool2d)  # of others, a second one is a shortcut
    return explain(layer, *call.inputs[:inputs])


def _asked(x: Tensor) -> bool:
    """Whether there are kernels to ask and to measure on x's device, for its dtype."""
    return _native.lib is not None and x.device.type == "cpu" and x.dtype in NAMES


def _torchs(layer: Module) -> bool:
    """Whether it is torch's own, of an operator that pyconv has, too."""
    known = isinstance(layer, _ConvNd) or operator_of(layer) != ""
    return known and not isinstance(layer, AlgorithmMixin)


def _roof(x: Tensor, moved: int) -> Roof | None:
    """Measured for the next power of two of megabytes, to measure seldom; None where it cannot be."""
    if not _asked(x):
        return None
    megabytes = 1 << max(-(-moved // 2**20) - 1, 0).bit_length()
    return roof(x.dtype, torch.get_num_threads(), megabytes)


def _bound(x: Tensor, flops: int, moved: int) -> float:
    machine = _roof(x, moved)
    return machine.seconds(flops, moved) if machine else math.nan


def _add_backward(call: Call, row: Row, first: bool) -> None:
    """Times the gradients of the parameters and, but for the first layer, of the input."""
    x = first_tensor(call.inputs)
    if x is None or not x.is_floating_point():
        return
    leaf = x.detach().clone().requires_grad_(not first)
    # A layer that works in place may not have a leaf.
    entry = leaf.clone() if getattr(call.layer, "inplace", False) else leaf
    y = first_tensor(call.layer(*[entry if t is x else t for t in call.inputs]))
    wanted = [p for p in call.layer.parameters() if p.requires_grad] + [leaf] * (not first)
    if y is None or not y.requires_grad or not wanted:
        row.backward_seconds = row.backward_bound = 0.0
        return
    dy = torch.randn_like(y)
    again = {"": lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True, allow_unused=True)}
    row.backward_seconds = alternate(again, 0.03, device=x.device.type)[""].median
    directions = (not first) + (row.multiply_adds > 0)
    row.backward_bound = directions * _bound(x, 2 * row.multiply_adds, row.moved)


def multiply_adds(call: Call) -> int:
    """Products that are summed: of a convolution IC/G * KH * KW for each output, 0 for other layers."""
    layer, x, y = call.layer, first_tensor(call.inputs), first_tensor(call.output)
    if x is None or y is None:
        return 0
    if isinstance(layer, _ConvNd):
        each = x if isinstance(layer, _ConvTransposeNd) else y
        return each.numel() * layer.weight[0].numel()
    return y.numel() * layer.in_features if isinstance(layer, torch.nn.Linear) else 0
