"""What torch must be told about an operator, written once for all of them.

An operator is a kernel in C++ and four formulas in Python: the shape of its output (fake), its
gradient (backward), its directional derivative (jvp) and its batching rule (vmap). `register`
gives them to every part of torch that asks and returns the function pyconv.ops calls. That
function has four doors:

    torch.func transform active    ->  Transformed  autograd.Function with setup_context and vmap
    torch.compile, torch.export    ->  the registered op, whose formula the compiler traces
    gradient or tangent wanted     ->  Eager        autograd.Function in its short form
    nothing wanted                 ->  the raw op

All four run the same kernel and the same formulas. They exist because the short form costs 11 us
less a call than setup_context, and the raw op 4 us less than the registered one (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from pyconv import _native, reference
from pyconv._shapes import ShapeError

_library = torch.library.Library("pyconv", "FRAGMENT")
_transforming = torch._C._are_functorch_transforms_active
_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled
_autocasting = torch.is_autocast_enabled


def _no_cuda(*_args: Any) -> Any:
    raise NotImplementedError(
        "pyconv has no CUDA kernels in this build; move the tensors to the CPU, or see `python -m pyconv info`"
    )


def _implement(name: str) -> None:
    """Where the compiled half is missing, the reference stands in; its annotations are the schema."""
    if _native.lib is None:
        function = getattr(reference, name)
        schema = torch.library.infer_schema(function, mutates_args=())
        for alias in (name, "_" + name):
            _library.define(alias + schema)
            _library.impl(alias, function, "CompositeExplicitAutograd")
    else:
        for alias in (name, "_" + name):
            _library.impl(alias, _no_cuda, "CUDA")


def _cast(args: Sequence[Any], device: str) -> tuple[Any, ...]:
    """As torch's autocast: floating tensors except float64 go to the autocast dtype."""
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        a.to(dtype)
        if isinstance(a, Tensor) and a.is_floating_point() and a.dtype != torch.float64
        else a
        for a in args
    )


def register(
    name: str,
    *,
    tensors: int,
    fake: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
    vmap: Callable[..., Any],
    flops: Callable[..., int] | None = None,
    autocast: bool = False,
) -> Callable[..., Any]:
    """Tells torch about pyconv::`name` and returns the differentiable function to call.

    The first `tensors` arguments are tensors (or None); the others are plain numbers. `setup` must
    save what backward and jvp read; `backward` returns one gradient per argument.
    """
    _implement(name)
    packets = [getattr(torch.ops.pyconv, name), getattr(torch.ops.pyconv, "_" + name)]
    op, raw = (packet.default for packet in packets)

    def fake_on_one_device(*args: Any) -> Any:
        devices = {a.device for a in args[:tensors] if a is not None}
        if len(devices) > 1:
            raise ShapeError(f"{name}: all tensors must be on one device, got {sorted(map(str, devices))}")
        return fake(*args)

    for alias in (name, "_" + name):
        torch.library.register_fake(f"pyconv::{alias}", fake_on_one_device)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup(ctx, inputs, output)  # register_autograd passes these three by name

    torch.library.register_autograd(f"pyconv::{name}", backward, setup_context=setup_context)
    if flops is not None:
        register_flop_formula(packets)(flops)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = raw(*args)
            setup(ctx, args, output)
            return output

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return raw(*args)

    for function in (Eager, Transformed):
        function.__name__ = function.__qualname__ = name  # grad_fn prints <conv2dBackward>
        function.backward = staticmethod(backward)  # type: ignore[method-assign]
        function.jvp = staticmethod(jvp)  # type: ignore[method-assign]
    Transformed.setup_context = staticmethod(setup)  # type: ignore[method-assign]
    Transformed.vmap = staticmethod(vmap)  # type: ignore[method-assign]

    def call(*args: Any) -> Any:
        if _compiling():
            return op(*args)
        if _transforming():
            return Transformed.apply(*args)
        if forward_ad._current_level >= 0:
            return Eager.apply(*args)
        if _grad_enabled():
            for tensor in args[:tensors]:
                if tensor is not None and tensor.requires_grad:
                    return Eager.apply(*args)
        return raw(*args)

    if autocast:
        for device in ("cpu", "cuda"):

            def cast_and_call(*args: Any, device: str = device) -> Any:
                with torch._C._ExcludeDispatchKeyGuard(
                    torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))
                ):
                    return op(*_cast(args, device))

            _library.impl(name, cast_and_call, f"Autocast{device.upper()}")

    call.__name__ = call.__qualname__ = name
    return call


def under_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` for people: casts first where autocast is on.

    The gradient formulas use `call` itself, so that a backward pass inside the autocast region
    still runs in the dtype of its forward pass.
    """

    def cast_and_call(*args: Any) -> Any:
        device = args[0].device.type
        return call(*(_cast(args, device) if _autocasting(device) else args))

    return cast_and_call


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if any tensor's strides say so: the rule of csrc/ops/tensor.h, for fakes."""
    last = any(
        t.dim() == 4 and torch._prims_common.suggest_memory_format(t) == torch.channels_last
        for t in tensors
    )
    return torch.channels_last if last else torch.contiguous_format


def format_of(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def empty(like: Tensor, size: Sequence[Any], format: torch.memory_format, **kwargs: Any) -> Tensor:
    dtype = kwargs.get("dtype", like.dtype)
    return torch.empty(tuple(size), dtype=dtype, device=like.device, memory_format=format)


def is_channels_last(dense: Tensor) -> bool:
    """Of a tensor the kernels wrote: NHWC strides are (H*W*C, 1, W*C, C)."""
    return dense.stride(1) == 1 and dense.stride(3) == dense.shape[1]
