"""Who can be timed: pyconv, torch eager, the peers and cuDNN, each at one layer or one step of a network.

A task is a dict that JSON can carry:

    {"kind": "layer", "case": a conv string, "dtype", "layout": "NCHW" or "NHWC", "cold": bool,
     "device": "cpu" or "cuda",
     "pass": "fwd", "bwd_input", "bwd_weight", or "autograd": forward and both gradients as a user asks for them}
    {"kind": "memory_bound", "case": a name of memory_bound.CASES, "dtype", "layout", "pass"}
    {"kind": "step", "network", "mode": "train" or "infer", "layout", "batch": an int or None}
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import pyconv
from pyconv import _native, ops
from pyconv._conv_string import Conv2dCase, conv2d
from pyconv._explain import candidate_call, explain_case, operands, torch_call

from . import cudnn, memory_bound, networks, peers
from .subject import LARGEST_ERROR, Subject, errors, rotating
from .summary import PACKED

Task = dict[str, Any]
Result = Tensor | tuple[Tensor, ...]
FLOAT32 = "pyconv float32"  # at a task of fewer bits: does storing less pay?


def prepare(player: str, task: Task) -> Subject:
    """The player at the task, checked against float64.

    Raises:
        Unable: it cannot do this.
    """
    peers.require(player, task)
    if task["kind"] == "step":
        last = task["layout"] == "NHWC"
        return networks.subject(player, task["network"], task["batch"], last, task["mode"])
    if task["kind"] == "memory_bound":
        return memory_bound.subject(player, task)
    return _layer(player, task)


def _layer(player: str, task: Task) -> Subject:
    case = conv2d(task["case"])
    dtype = torch.float32 if player == FLOAT32 else getattr(torch, task["dtype"])
    last, direction = task["layout"] == "NHWC", task["pass"]
    gpu = task.get("device") == "cuda"

    def make() -> Callable[[], Result]:
        torch.manual_seed(1)
        if gpu:
            return cudnn.layer(player, case, operands(case, dtype, last), direction, last)
        if direction == "autograd":
            return _autograd(player, case, *operands(case, dtype, last))
        if player in ("pyconv", FLOAT32, "torch"):
            return candidate_call(
                case, dtype, last, direction, "torch" if player == "torch" else ""
            )
        x, w, _ = operands(case, dtype, last)
        if player == PACKED:
            return _packed(case, x, w)
        return peers.inference(player, _module(case, w), x)

    first = make()
    found = errors(_vector(first()), _vector(_judge(case, dtype, last, direction)))
    about: dict[str, Any] = {}
    if player == "pyconv" and not gpu:
        about = _about(case, dtype, last, direction)
    call: Callable[[], object] = first
    if task.get("cold"):
        call = rotating(make, explain_case(case, dtype, last).bytes)
    subject = Subject(call, *found, LARGEST_ERROR[dtype], about)
    if gpu:
        subject.timer = cudnn.seconds
        if "tf32" in player or (player == "pyconv" and _native.lib and _native.lib.allow_tf32()):
            subject.allowed = cudnn.LARGEST_TF32_ERROR
    return subject


def _about(case: Conv2dCase, dtype: torch.dtype, last: bool, direction: str) -> dict[str, Any]:
    found = explain_case(case, dtype, last)
    if direction == "autograd":
        kernels = dict.fromkeys(p.chosen for p in found.passes)
        bound = sum(p.bound for p in found.passes)
        return {
            "kernel": "+".join(kernels),
            "flops": 3 * found.flops,
            "bytes": 3 * found.bytes,
            "bound": bound,
        }
    plan = next(p for p in found.passes if p.name == direction)
    source = next(k.where for k in plan.candidates if k.name == plan.chosen)
    return {
        "kernel": plan.chosen,
        "source": source,
        "flops": found.flops,
        "bytes": found.bytes,
        "bound": plan.bound,
        "workspace": plan.workspace[plan.chosen],
    }


@lru_cache(maxsize=2)  # every player of a row asks, and two types of one row
def _judge(case: Conv2dCase, dtype: torch.dtype, last: bool, direction: str) -> Result:
    """torch's float64 result for the very operands that `dtype` rounds to."""
    torch.manual_seed(1)
    x, w, dy = (t.double().contiguous() for t in operands(case, dtype, last))
    if direction == "autograd":
        return _autograd("torch", case, x, w, dy)()
    return torch_call(case, x, w, dy, direction)()


def _autograd(
    player: str, case: Conv2dCase, x: Tensor, w: Tensor, dy: Tensor
) -> Callable[[], Result]:
    """Forward and both gradients, (dx, dw)."""
    conv = torch.nn.functional.conv2d if player == "torch" else ops.conv2d
    arguments: dict[str, Any] = case.arguments
    of = x.requires_grad_(), w.requires_grad_()
    return lambda: torch.autograd.grad(conv(x, w, **arguments), of, dy)


def _vector(result: Result) -> Tensor:
    parts = (result,) if isinstance(result, Tensor) else result
    return torch.cat([part.flatten() for part in parts])


def _packed(case: Conv2dCase, x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    layer = pyconv.prepack(pyconv.convert(_module(case, w), report=lambda _: None))

    def call() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return call


def _module(case: Conv2dCase, w: Tensor) -> torch.nn.Module:
    """The layer as a user of torch has it."""
    layer = torch.nn.Conv2d(
        case.ic,
        case.oc,
        (case.kh, case.kw),
        (case.sh, case.sw),
        (case.ph, case.pw),
        (case.dh, case.dw),
        case.g,
        bias=False,
        dtype=w.dtype,
    )
    layer.weight = torch.nn.Parameter(w, requires_grad=False)
    return layer
