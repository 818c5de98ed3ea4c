"""explain() for pooling and batch norm, whose bound is the bytes they move."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyconv import _explain_cuda, _native, ops
from pyconv._explain_cuda import CudaExplanation
from pyconv._explain_kernels import NAMES, Candidate, kernels, line_of, roof
from pyconv._shapes import pair
from pyconv._timing import alternate
from pyconv.nn import BatchNormReLU2d

# torch's layer -> the operator and the attributes that are its arguments
_POOL = ("kernel_size", "stride", "padding")
_LAYERS: dict[type, tuple[str, tuple[str, ...]]] = {
    torch.nn.MaxPool2d: ("max_pool2d", (*_POOL, "dilation", "ceil_mode", "return_indices")),
    torch.nn.AvgPool2d: (
        "avg_pool2d",
        (*_POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    torch.nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", ("output_size", "return_indices")),
    torch.nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    torch.nn.MaxUnpool2d: ("max_unpool2d", _POOL),
    torch.nn.BatchNorm2d: ("batch_norm", ()),
    BatchNormReLU2d: ("batch_norm_relu", ()),
}
OPERATORS = tuple(dict.fromkeys(op for op, _ in _LAYERS.values()))


@dataclass
class Pass:
    """One direction: who runs, who refused, and the bound."""

    name: str
    chosen: str
    candidates: list[Candidate]
    bytes: int  # of every tensor that a caller gives or gets, once
    bandwidth: float  # measured, of a copy that moves as many
    seconds: dict[str, float] = field(default_factory=dict)  # by kernel; "torch" is torch's

    @property
    def bound(self) -> float:
        """Seconds: no kernel is faster than its bytes."""
        return self.bytes / self.bandwidth


@dataclass
class Explanation:
    """What `explain` found; print it, or read its fields."""

    op: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    arguments: dict[str, Any]
    dtype: torch.dtype
    channels_last: bool
    threads: int
    isa: str
    passes: list[Pass]

    def __str__(self) -> str:
        lines = [
            f"{self.op} {self.x} -> {self.y}{_given(self.arguments)}",
            f"  on {NAMES[self.dtype]} {'channels_last' if self.channels_last else 'NCHW'}, "
            f"{self.isa}, {self.threads} thread{'s' if self.threads > 1 else ''}",
        ]
        for p in self.passes:
            lines.append(
                f"{p.name}: {p.chosen} runs; {p.bytes / 1e6:.2f} MB compulsory, at best "
                f"{p.bound * 1e6:.1f} us at the {p.bandwidth / 1e9:.0f} GB/s of a copy that moves as much"
            )
            lines += [
                f"    {k.name:<11} {k.cannot or k.refuses or 'can run here'}  [{k.where}]"
                for k in p.candidates
            ]
            lines += [
                f"    {name:<11} {seconds * 1e6:10.1f} us  {p.bytes / seconds / 1e9:6.1f} GB/s  "
                f"{p.bound / seconds:5.0%} of the roof"
                for name, seconds in sorted(p.seconds.items(), key=lambda item: item[1])
            ]
        return "\n".join(lines)


def _given(arguments: dict[str, Any]) -> str:
    return "".join(f", {k} {v}" for k, v in arguments.items() if not isinstance(v, Tensor))


def operator_of(layer_or_op: Any) -> str:
    """The name of a pooling or batch-norm operator, or "" for anything else."""
    for kind, (op, _) in _LAYERS.items():
        if isinstance(layer_or_op, kind):
            return op
    return next((op for op in OPERATORS if layer_or_op is getattr(ops, op)), "")


def explain(
    layer_or_op: Any,
    *inputs: Tensor,
    measure: bool = False,
    device: str | None = None,
    **arguments: Any,
) -> Explanation | CudaExplanation:
    """As pyconv.explain, of a pooling or batch-norm layer or operator."""
    op = operator_of(layer_or_op)
    if isinstance(layer_or_op, torch.nn.Module):
        arguments = _of_layer(layer_or_op, op)
    # Copies: a batch norm in training moves the running statistics it is given.
    x, *rest = (t.detach().clone() if isinstance(t, Tensor) else t for t in inputs)
    if x.dim() != 4:
        raise ValueError(f"explain: {op}'s input must be (N, C, H, W), got {x.dim()}-D")
    call = functools.partial(getattr(ops, op), **arguments)
    on_cuda = _explain_cuda.wanted(device, x)
    with _native.without_emulation():
        found = call(x, *rest)
    y = found[0] if isinstance(found, tuple) else found
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    suffix, shape = _shape(op, x, y, arguments, last)
    if op.startswith("batch_norm"):
        functions = {"fwd": "train" if arguments.get("training") else "eval", "bwd_input": "bwd"}
    else:
        functions = {"fwd": f"{_family(op)}_fwd", "bwd_input": f"{_family(op)}_bwd"}
    moved = functools.partial(_bytes, op, x, y, arguments)
    if on_cuda:
        title = f"{op} {tuple(x.shape)} -> {tuple(y.shape)}{_given(arguments)}"
        family = {"unpool": "max_unpool2d"}.get(_family(op), f"{_family(op)}_pool2d")
        family = "batch_norm" if suffix == "_batch_norm" else family
        entries = {name: f"{family}_{{}}_{f.split('_')[-1]}" for name, f in functions.items()}
        return _explain_cuda.explain(
            title, x.dtype, last, entries, suffix, shape, moved, measure=measure
        )
    lib, threads = kernels(), torch.get_num_threads()
    passes = []
    for name in functions:
        candidates = [
            Candidate(kernel, source, cannot, refuses, line_of(source, functions[name]))
            for kernel, source, cannot, refuses in getattr(lib, f"ask{suffix}")(*shape, name)
        ]
        chosen = next(k.name for k in candidates if not k.refuses)
        count = moved(name)
        machine = roof(x.dtype, threads, -(-count // 2**20))
        passes.append(Pass(name, chosen, candidates, count, machine.bandwidth))
        if measure:
            passes[-1].seconds = _measured(op, call, x, rest, arguments, passes[-1])
    return Explanation(
        op, tuple(x.shape), tuple(y.shape), arguments, x.dtype, last, threads, lib.isa(), passes
    )


def _of_layer(layer: Any, op: str) -> dict[str, Any]:
    if op.startswith("batch_norm"):
        # Of a layer in training the running statistics are left alone.
        training = layer.training or layer.running_mean is None
        running = (None, None) if training else (layer.running_mean, layer.running_var)
        parameters = (None if t is None else t.detach() for t in (layer.weight, layer.bias))
        keys = ("running_mean", "running_var", "weight", "bias")
        given = dict(zip(keys, (*running, *parameters), strict=True))
        clipped = {"ceiling": layer.ceiling} if op == "batch_norm_relu" else {}
        return {**given, **clipped, "training": training, "eps": layer.eps}
    names = next(names for kind, (_, names) in _LAYERS.items() if isinstance(layer, kind))
    return {name: getattr(layer, name) for name in names}


def _shape(
    op: str, x: Tensor, y: Tensor, arguments: dict[str, Any], last: bool
) -> tuple[str, tuple[Any, ...]]:
    """What ask{first}() of pyconv._C takes before the direction."""
    dtype = NAMES[x.dtype]
    if op.startswith("batch_norm"):
        return "_batch_norm", (*x.shape, dtype, last, bool(arguments.get("training")))
    axes = []
    for i in (0, 1):
        here, there = x.shape[2 + i], y.shape[2 + i]
        if op == "max_unpool2d":
            axes.append((there, here, 0, 1, 0, 1))
        elif op.startswith("adaptive"):  # adaptive_axis of csrc/ops/pool2d.cpp
            step = here // there if there and here % there == 0 else 0
            axes.append((here, there, step, step or 1, 0, 1))
        else:
            kernel = pair(op, "kernel_size", arguments["kernel_size"])[i]
            stride = arguments.get("stride")
            stride = kernel if stride is None else pair(op, "stride", stride)[i]
            padding, dilation = (
                pair(op, name, arguments.get(name, default))[i]
                for name, default in (("padding", 0), ("dilation", 1))
            )
            axes.append((here, there, kernel, stride, padding, dilation))
    return "_pool2d", (_family(op), *x.shape[:2], *axes, dtype, last)


def _family(op: str) -> str:
    """max, avg or unpool."""
    return "unpool" if op == "max_unpool2d" else op.removeprefix("adaptive_")[:3]


def _bytes(op: str, x: Tensor, y: Tensor, arguments: dict[str, Any], direction: str) -> int:
    """Of every tensor that a caller gives or gets, once."""
    size_x, size_y = x.numel() * x.element_size(), y.numel() * y.element_size()
    if op.startswith("batch_norm"):
        relu = op == "batch_norm_relu"
        residual = relu and arguments.get("residual") is not None
        reads = (3 if relu else 2) if direction == "bwd_input" else 1
        return (reads + 1 + residual) * size_x
    if op == "max_unpool2d":
        return size_x + size_y + 8 * x.numel()
    indices = bool(arguments.get("return_indices")) or op == "adaptive_max_pool2d"
    return size_x + size_y + (8 * y.numel() if indices else 0)


def _measured(
    op: str,
    call: Callable[..., Any],
    x: Tensor,
    rest: list[Tensor],
    arguments: dict[str, Any],
    found: Pass,
) -> dict[str, float]:
    """Medians of every kernel that can run, and of torch, in turns."""
    players: dict[str, Callable[..., Any]] = {
        k.name: functools.partial(call, algorithm=k.name) for k in found.candidates if not k.cannot
    }
    torchs = getattr(torch.nn.functional, op, None)
    if torchs is not None:
        players["torch"] = functools.partial(torchs, **arguments)
    calls = {}
    for name, player in players.items():
        if found.name == "fwd":
            calls[name] = functools.partial(player, x, *rest)
            continue
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.enable_grad():
            y = player(given, *rest)
        y = y[0] if isinstance(y, tuple) else y
        calls[name] = functools.partial(
            torch.autograd.grad, y, given, torch.randn_like(y), retain_graph=True
        )
    with torch.no_grad():
        return {name: t.median for name, t in alternate(calls, seconds=0.2).items()}
