"""Route the functions of torch.nn.functional to pyconv for the length of a with-block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyconv import ops
from pyconv.ops._algorithms import OPERATORS
from pyconv.ops._check import DTYPES


def _with_indices(op: Callable[..., Any]) -> Callable[..., Any]:
    """torch's second name for a pooling function whose indices are wanted."""
    return lambda *args, **kwargs: op(*args, **{**kwargs, "return_indices": True})


def _low_level_max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """torch.max_pool2d: an empty stride means kernel_size."""
    return ops.max_pool2d(input, kernel_size, stride or None, padding, dilation, ceil_mode)


def _low_level_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """torch.batch_norm: the arguments of torch.nn.functional's in another order."""
    return ops.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


_ROUTES: dict[Any, Callable[..., Any]] = {
    **{getattr(torch.nn.functional, name): getattr(ops, name) for name in OPERATORS},
    **{
        getattr(torch.nn.functional, f"{name}_with_indices"): _with_indices(getattr(ops, name))
        for name in ("max_pool2d", "adaptive_max_pool2d")
    },
    getattr(torch, "max_pool2d"): _low_level_max_pool2d,  # noqa: B009  see tests/test_layering.py
    getattr(torch, "batch_norm"): _low_level_batch_norm,  # noqa: B009
}


def _takes(input: Any) -> bool:
    """pyconv's operators work on images: (N, C, H, W) or (C, H, W), of four floating dtypes."""
    return (
        isinstance(input, Tensor)
        and input.dim() in (3, 4)
        and input.dtype in DTYPES
        and input.layout is torch.strided
        and input.device.type in ("cpu", "meta")
    )


class _Override(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ROUTES and _takes(args[0] if args else kwargs.get("input")):
            return _ROUTES[func](*args, **kwargs)
        return func(*args, **kwargs)


def override_torch() -> TorchFunctionMode:
    """A context in which torch's 2-D convolution, pooling and batch norm run on pyconv's kernels.

        with pyconv.override_torch():
            y = torch.nn.functional.conv2d(x, w)      # pyconv.ops.conv2d
            y = torchs_own_model(x)                    # its layers call the functions above

    It reaches what goes through torch.nn.functional's conv2d, conv_transpose2d, max_pool2d,
    avg_pool2d, adaptive_avg_pool2d, adaptive_max_pool2d, max_unpool2d and batch_norm, or their
    namesakes in torch: all layers of torch.nn, with and without gradients. What pyconv has not
    (complex and integer dtypes, 1-D and 3-D data, sparse tensors, other devices than the CPU) runs
    on torch as before. `pyconv.convert` is the lasting form for a model built of layers.

    A model with activation checkpoints computes its forward pass again during backward, which the
    context does not reach: enter it inside the checkpointed function, or use `convert`.
    """
    return _Override()
