"""What torch must be told about an operator, written once for all of them.

An operator is a kernel in C++ and four formulas in Python: the shape of its output (fake), its
gradient (backward), its directional derivative (jvp) and its batching rule (vmap). `register`
gives them to every part of torch that asks and returns the function pyconv.ops calls. That
function has three doors:

    torch.compile, torch.export, torch.func, forward mode   ->  the registered op
    gradient wanted                                         ->  Eager, an autograd.Function
    nothing wanted                                          ->  the raw op

All three run the same kernel and the same formulas, and the registered op alone would do. The other
two doors exist because in eager code they are 11 us and 4 us a call cheaper (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import (  # type: ignore[attr-defined]
    enable_single_level_autograd_function,
)
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from pyconv import _native, reference
from pyconv._shapes import ShapeError

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_library = torch.library.Library("pyconv", "FRAGMENT")
_transforming = torch._C._are_functorch_transforms_active
_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled
_autocasting = torch.is_autocast_enabled
_any_autocasting = torch._C._is_any_autocast_enabled


def _implement(name: str, fake: Callable[..., Any]) -> None:
    """Without the compiled half the reference stands in; its annotations are the schema."""
    if _native.lib is None:
        function = getattr(reference, name)
        schema = torch.library.infer_schema(function, mutates_args=())

        def checked(*args: Any) -> Any:
            fake(*args)  # refuses the sizes that the kernels would refuse
            if args[0].dtype not in _DTYPES:
                raise ShapeError(f"{name}: dtype must be one of {_DTYPES}, got {args[0].dtype}")
            with torch.autocast(args[0].device.type, enabled=False):  # sums keep their dtype
                return function(*args)

        for alias in (name, "_" + name):
            _library.define(alias + schema)
            _library.impl(alias, checked, "CompositeExplicitAutograd")


def _cast(args: Sequence[Any], device: str) -> tuple[Any, ...]:
    """As torch's autocast: floating tensors except float64 go to the autocast dtype."""
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        a.to(dtype)
        if isinstance(a, Tensor) and a.is_floating_point() and a.dtype != torch.float64
        else a
        for a in args
    )


def _cast_if_on(args: tuple[Any, ...]) -> tuple[Any, ...]:
    device = args[0].device.type
    casting = device != "meta" and _autocasting(device)
    return _cast(args, device) if casting else args


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
) -> Any:
    """Tells torch about pyconv::`name` and returns the differentiable function to call.

    The first `tensors` arguments are tensors (or None); the others are plain numbers. `setup` must
    save what backward and jvp read; `backward` returns one gradient per argument.
    """
    op, raw = _declare(name, tensors, fake, flops)
    torch.library.register_vmap(f"pyconv::{name}", vmap)
    _library.impl(
        name, _autograd_kernel(name, op, setup, backward, jvp), "Autograd", with_keyset=True
    )

    def forward(ctx: Any, *args: Any) -> Any:
        output = raw(*args)
        setup(ctx, args, output)
        return output

    Eager = _function(name, forward=forward, backward=backward)
    # No jvp will read what setup saves for one, and saving costs 0.3 us; a node's own apply asks in
    # every call which of torch's two names its formula has, which costs 0.6 us.
    Eager._backward_cls.save_for_forward = _nothing
    Eager._backward_cls.apply = backward
    # The apply that Function.apply ends in; before it, 2 us go into asking what `call` has asked.
    eager = super(torch.autograd.Function, Eager).apply

    return _doors(name, op, eager, raw, tensors, autocast)


def register_for_inference(
    name: str,
    *,
    tensors: int,
    fake: Callable[..., Any],
    vmap: Callable[..., Any],
    flops: Callable[..., int],
    instead: str,
) -> Any:
    """As `register`, for an operator without derivatives: wanting one is an error that says what to
    do `instead`."""
    op, raw = _declare(name, tensors, fake, flops)

    def refuse(*_: Any) -> None:
        raise RuntimeError(
            f"{name}: it has no derivatives, being for inference only, but an argument wants one; {instead}"
        )

    def kernel(keyset: Any, *args: Any) -> Any:
        wanted = _grad_enabled() and torch._C._any_requires_grad(*args)
        if wanted or (forward_ad._current_level >= 0 and _any_tangent(args[:tensors])):
            refuse()
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    torch.library.register_vmap(f"pyconv::{name}", vmap)
    _library.impl(name, kernel, "Autograd", with_keyset=True)
    return _doors(name, op, refuse, raw, tensors, autocast=True)


def _doors(
    name: str,
    op: Callable[..., Any],
    eager: Callable[..., Any],
    raw: Callable[..., Any],
    tensors: int,
    autocast: bool,
) -> Any:
    """The function to call. Where `autocast` is so, it has a twin for people, `under_autocast`, that
    casts where autocast is on.

    The gradient formulas use the function itself, so that a backward pass inside the autocast
    region still runs in the dtype of its forward pass.
    """

    def door(casts: bool) -> Any:
        def call(*args: Any) -> Any:
            if _compiling() or _transforming() or forward_ad._current_level >= 0:
                return op(*_cast_if_on(args)) if casts else op(*args)
            if casts and _any_autocasting():
                args = _cast_if_on(args)
            if _grad_enabled():
                for tensor in args[:tensors]:
                    if tensor is not None and tensor.requires_grad:
                        return eager(*args)
            return raw(*args)

        call.__name__ = call.__qualname__ = name
        return call

    call = door(casts=False)
    if autocast:
        _register_autocast(name, op)
        call.under_autocast = door(casts=True)
    return call


def _declare(
    name: str, tensors: int, fake: Callable[..., Any], flops: Callable[..., int] | None
) -> tuple[Any, Any]:
    """What needs no derivative: kernels, sizes and costs of both names; returns the two ops."""
    _implement(name, fake)
    op, raw = (declare(alias, tensors, fake, flops) for alias in (name, "_" + name))
    return op, raw._op  # _op is what calling the op calls, 0.15 us later


def declare(
    name: str, tensors: int, fake: Callable[..., Any], flops: Callable[..., int] | None
) -> Any:
    """Sizes and costs of one op, for whoever traces or counts; returns it."""
    packet = getattr(torch.ops.pyconv, name)

    def fake_on_one_device(*args: Any) -> Any:
        devices = {a.device for a in args[:tensors] if a is not None}
        if len(devices) > 1:
            raise ShapeError(
                f"{name.lstrip('_')}: all tensors must be on one device, got {sorted(map(str, devices))}"
            )
        return fake(*args)

    torch.library.register_fake(f"pyconv::{name}", fake_on_one_device)
    if flops is not None:
        register_flop_formula(packet)(flops)
    return packet.default


def _register_autocast(name: str, op: Any) -> None:
    for device in ("cpu", "cuda"):

        def cast_and_call(*args: Any, device: str = device) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(
                torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))
            ):
                return op(*_cast(args, device))

        _library.impl(name, cast_and_call, f"Autocast{device.upper()}")


def _nothing(*_: Any) -> None:
    pass


def _any_tangent(tensors: Sequence[Any]) -> bool:
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    """An autograd.Function made of these methods, whose nodes print as <conv2dBackward>."""
    return type(name, (torch.autograd.Function,), {k: staticmethod(v) for k, v in methods.items()})


class _Primals:
    """ctx for a jvp formula: the saved tensors without their own tangents."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = tuple(
            None if t is None else forward_ad.unpack_dual(t, level=0).primal
            for t in ctx.saved_tensors
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _autograd_kernel(
    name: str,
    op: Any,
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
) -> Callable[..., Any]:
    """What runs under the dispatch key Autograd, at every level of nested transforms.

    As torch.library.register_autograd, but that knows no forward mode (tangents come out zero,
    silently) and refuses torch.func. Like the kernels of torch's own operators this one records one
    level and sends the call on to the next: below the key Autograd, with the modes the caller had.
    autograd.Function switches both modes off for forward and jvp, which would hide the call from
    the levels outside.
    """

    def send_on(keyset: Any, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def forward(ctx: Any, *args: Any) -> Any:
        *args, keyset, grad_mode, forward_mode = args  # type: ignore[assignment]
        with torch.set_grad_enabled(grad_mode), forward_ad._set_fwd_grad_enabled(forward_mode):
            output = send_on(keyset, args)
        setup(ctx, tuple(args), output)
        return output

    def backward_of_args(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return (*backward(ctx, *grads), None, None, None)

    def jvp_of_args(ctx: Any, *tangents: Any) -> Any:
        primals = _Primals(ctx)
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(primals, *tangents[:-3])

    Node = _function(name, forward=forward, backward=backward_of_args, jvp=jvp_of_args)

    def kernel(keyset: Any, *args: Any) -> Any:
        wanted = _grad_enabled() and torch._C._any_requires_grad(*args)
        if not (wanted or _transforming() or forward_ad._current_level >= 0):
            return send_on(keyset, args)
        modes = _grad_enabled(), torch._C._is_fwd_grad_enabled()
        with enable_single_level_autograd_function():
            # Function.apply of Python would enter torch.func again; the one it inherits does not.
            return super(torch.autograd.Function, Node).apply(*args, keyset, *modes)

    return kernel


def derivatives_are_off() -> bool:
    """Whether nobody will differentiate, transform or compile what is called now."""
    return not (
        _grad_enabled() or _compiling() or _transforming() or forward_ad._current_level >= 0
    )


def wants_derivative(*tensors: Tensor | None) -> bool:
    """Whether a call may be asked for one: by backward, forward mode, a transform or a compiler."""
    if _compiling() or _transforming() or forward_ad._current_level >= 0:
        return True
    if _grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


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
