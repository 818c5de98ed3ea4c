"""Pooling and batch norm, whose work is moving bytes: every pass apart, both layouts, beside torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torchs

from pyconv import ops
from pyconv._explain_kernels import roof

from . import run
from .subject import LARGEST_ERROR, Subject, errors

Result = Tensor | tuple[Tensor, ...]
# fwd: inference; train: the forward of a training step, which keeps what backward needs; bwd: from there to dx;
# indices: fwd with the indices that max_unpool2d takes.
POOL, MAX, NORM = ("fwd", "bwd"), ("fwd", "train", "indices", "bwd"), ("fwd", "train", "bwd")


@dataclass(frozen=True)
class Case:
    """A layer of a network: what torch.nn.functional calls it, its input and its arguments."""

    name: str
    op: str
    x: tuple[int, int, int, int]
    arguments: dict[str, Any] = field(default_factory=dict)
    passes: tuple[str, ...] = POOL

    def __str__(self) -> str:
        return f"{self.op} {self.x} {self.arguments}"


def _norms() -> Iterator[Case]:
    sizes = (
        *((8, 64, 112, 112), (8, 256, 56, 56), (8, 1024, 14, 14), (8, 2048, 7, 7)),
        *((8, 144, 56, 56), (64, 6, 28, 28), (1, 1024, 7, 7), (1, 64, 284, 284)),
    )
    for n, c, h, w in sizes:
        yield Case(f"bn.{n}x{c}x{h}", "batch_norm", (n, c, h, w), passes=NORM)
    for n, c, h, w in sizes[:6]:
        yield Case(f"bnrelu.{n}x{c}x{h}", "batch_norm_relu", (n, c, h, w), passes=NORM)


CASES = (
    Case("resnet50.max", "max_pool2d", (8, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}, MAX),
    Case("vgg.max", "max_pool2d", (2, 64, 224, 224), {"kernel_size": 2}, MAX),
    Case("alexnet.max", "max_pool2d", (8, 64, 55, 55), {"kernel_size": 3, "stride": 2}, MAX),
    Case("googlenet.max", "max_pool2d", (8, 480, 28, 28), {"kernel_size": 3, "stride": 2, "ceil_mode": True}, MAX),
    Case("yolo.spp", "max_pool2d", (1, 512, 13, 13), {"kernel_size": 5, "stride": 1, "padding": 2}, MAX),
    Case("lenet.avg", "avg_pool2d", (64, 6, 28, 28), {"kernel_size": 2}),
    Case("inception.avg", "avg_pool2d", (8, 288, 35, 35), {"kernel_size": 3, "stride": 1, "padding": 1}),
    Case("densenet.avg", "avg_pool2d", (8, 128, 56, 56), {"kernel_size": 2}),
    Case("resnet50.gap", "adaptive_avg_pool2d", (8, 2048, 7, 7), {"output_size": 1}),
    Case("vgg.adaptive", "adaptive_avg_pool2d", (8, 256, 13, 13), {"output_size": 6}),
    Case("spp.max", "adaptive_max_pool2d", (8, 256, 13, 13), {"output_size": 4}, MAX),
    Case("segnet.unpool", "max_unpool2d", (4, 64, 120, 160), {"kernel_size": 2}),
    *_norms(),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument(
        "--pass", dest="passes", metavar="A,B", help="of fwd, train, indices, bwd (all)"
    )
    run.add_arguments(parser, seconds=0.2)
    parser.set_defaults(run=main)


def tasks(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    wanted = args.passes.split(",") if args.passes else None
    for case in CASES:
        if not re.search(args.filter, f"{case.op} {case.name}"):
            continue
        for layout in run.LAYOUTS[args.layout]:
            for direction in case.passes:
                if wanted is None or direction in wanted:
                    task = {
                        "case": case.name,
                        "dtype": args.dtype,
                        "layout": layout,
                        "pass": direction,
                    }
                    facts = {**task, "case": str(case), "layer": case.name, "family": case.op}
                    yield {"kind": "memory_bound", **task}, facts


def main(args: argparse.Namespace) -> int:
    parts = ["memory_bound", args.dtype, f"{args.threads}t"]
    parts += ["part"] if args.filter or args.passes or args.layout != "both" else []
    return run.run(args, "-".join(parts), ["pyconv", "torch"], tasks(args))


# --- the worker's side


def subject(player: str, task: dict[str, Any]) -> Subject:
    """The player at one pass of a case, checked against float64."""
    case, dtype, last = (
        BY_NAME[task["case"]],
        getattr(torch, task["dtype"]),
        task["layout"] == "NHWC",
    )
    call = _call(player, case, operands(case, dtype, last), task["pass"])
    found = errors(_vector(call()), _judge(task["case"], dtype, last, task["pass"]))
    about: dict[str, Any] = {}
    if player == "pyconv":
        moved = compulsory_bytes(case, dtype, task["pass"])
        machine = roof(dtype, torch.get_num_threads(), -(-moved // 2**20))
        about = {"bytes": moved, "bound": moved / machine.bandwidth}
    return Subject(call, *found, LARGEST_ERROR[dtype], about)


@dataclass(frozen=True)
class Operands:
    """Random x, what the layer owns, its output's gradient, and the indices of unpooling."""

    x: Tensor
    per_channel: tuple[Tensor, ...] = ()  # running_mean, running_var, weight, bias
    dy: Tensor | None = None
    indices: Tensor | None = None


def operands(case: Case, dtype: torch.dtype, last: bool) -> Operands:
    """The same for every player and layout."""
    torch.manual_seed(1)
    layout = torch.channels_last if last else torch.contiguous_format

    def random(size: Any) -> Tensor:
        return torch.randn(size).to(dtype).to(memory_format=layout)

    x = random(case.x)
    if case.op.startswith("batch_norm"):
        c = case.x[1]
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        per_channel = torch.randn(c), torch.rand(c) + 0.5, torch.randn(c), torch.randn(c)
        dy = random(case.x)
        if case.op == "batch_norm_relu":  # no gradient where rounding decides whether one passes
            before = torchs.batch_norm(x.float(), *per_channel, True, momentum=0.0)
            dy = dy * (before.abs() > 0.05)
        return Operands(x, tuple(t.to(kept) for t in per_channel), dy)
    if case.op == "max_unpool2d":
        n, c, h, w = case.x
        x, indices = torchs.max_pool2d(random((n, c, 2 * h, 2 * w)), 2, return_indices=True)
        indices = indices.to(memory_format=layout)
        return Operands(x.to(memory_format=layout), (), random((n, c, 2 * h, 2 * w)), indices)
    return Operands(x, (), random(getattr(torchs, case.op)(x.float(), **case.arguments).shape))


def _call(player: str, case: Case, o: Operands, direction: str) -> Callable[[], Result]:
    library: Any = ops if player == "pyconv" else torchs
    two = player == "torch" and case.op == "batch_norm_relu"
    function = _batch_norm_and_relu if two else getattr(library, case.op)
    if case.op.startswith("batch_norm"):
        mean, var, weight, bias = o.per_channel

        def forward(x: Tensor) -> Any:
            return function(x, mean, var, weight, bias, direction != "fwd")
    elif case.op == "max_unpool2d":

        def forward(x: Tensor) -> Any:
            return function(x, o.indices, **case.arguments)
    else:
        extra = {"return_indices": True} if direction == "indices" else {}

        def forward(x: Tensor) -> Any:
            return function(x, **case.arguments, **extra)

    if direction in ("fwd", "indices"):
        return lambda: _without_gradient(forward, o.x)
    x = o.x.detach().requires_grad_()
    if direction == "train":
        return lambda: forward(x).detach()
    wanted = [x, *(parameter.requires_grad_() for parameter in o.per_channel[2:])]
    y = forward(x)
    if case.op == "batch_norm_relu":  # two nodes of torch's
        return lambda: torch.autograd.grad(y, wanted, o.dy, retain_graph=True)
    return _backward(y, wanted, o.dy)


def _batch_norm_and_relu(*args: Any) -> Tensor:
    return torchs.relu(torchs.batch_norm(*args), inplace=True)


def _without_gradient(forward: Callable[[Tensor], Any], x: Tensor) -> Any:
    with torch.no_grad():
        return forward(x)


def _backward(y: Tensor, wanted: list[Tensor], dy: Tensor | None) -> Callable[[], Result]:
    """The node that the engine would call, without the engine: 20 us a call, the same for all.

    With the engine where a library made several nodes of the operator.
    """
    node: Any = y.grad_fn
    if any(n is not None and type(n).__name__ != "AccumulateGrad" for n, _ in node.next_functions):
        return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)
    no_gradient = (None,) * (len(node._input_metadata) - 1)  # of indices and statistics
    backward = node if callable(node) else lambda dy: node.apply(dy, *no_gradient)

    def call() -> Result:
        with torch.no_grad():
            found = backward(dy)
        return (found,) if isinstance(found, Tensor) else tuple(t for t in found if t is not None)

    return call


@lru_cache(maxsize=2)
def _judge(name: str, dtype: torch.dtype, last: bool, direction: str) -> Tensor:
    """torch's float64 result for the very operands that `dtype` rounds to."""
    o = operands(BY_NAME[name], dtype, last)
    wide = Operands(
        o.x.double(),
        tuple(t.double() for t in o.per_channel),
        None if o.dy is None else o.dy.double(),
        o.indices,
    )
    return _vector(_call("torch", BY_NAME[name], wide, direction)()).double()


def _vector(result: Result) -> Tensor:
    parts = (result,) if isinstance(result, Tensor) else result
    return torch.cat([part.detach().double().flatten() for part in parts])


def compulsory_bytes(case: Case, dtype: torch.dtype, direction: str) -> int:
    """What no implementation can leave out: every tensor that the caller gives or gets, once."""
    o = operands(case, dtype, False)
    assert o.dy is not None
    x, y = o.x.numel() * o.x.element_size(), o.dy.numel() * o.dy.element_size()
    if case.op == "batch_norm_relu":
        return 4 * x if direction == "bwd" else 2 * x
    if case.op == "batch_norm":
        return 3 * x if direction == "bwd" else 2 * x
    if case.op == "max_unpool2d":
        return x + y + 8 * o.x.numel()
    return x + y + (8 * o.dy.numel() if direction == "indices" else 0)
