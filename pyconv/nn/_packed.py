"""Weights in the order of the kernel that reads them, kept beside a layer for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pyconv import ops

_compiling = torch.compiler.is_compiling
_transforming = torch._C._are_functorch_transforms_active


class PackedWeight:
    """What ops.conv2d_pack made of a layer's weight, for each size of image that came by.

    It belongs to one state of one tensor: its storage, version, size and dtype. Keeping an alias of
    that tensor keeps the storage from being given to another. It goes into no copy, pickle or
    state_dict: a copy starts empty.
    """

    def __init__(self) -> None:
        self._alias: Tensor | None = None
        self._state: tuple[Any, ...] = ()
        self._by_size: dict[Any, Tensor | None] = {}
        self._last: tuple[Any, Tensor | None] = ((), None)  # of the inputs last seen

    def of(self, layer: Any, x: Tensor, padding: Any, *others: Tensor | None) -> Tensor | None:
        """The packed weight of `layer` for inputs like x, made now if there is none or it changed.

        None where packing would not pay, and for calls that need the weight itself: those that want
        a gradient, are compiled, transformed or cast.
        """
        if _compiling() or _transforming() or x.device.type != "cpu":
            return None
        seen = (x.shape, x.dtype, x.stride(1) == 1)
        last = self._last
        if last[1] is None and last[0] == seen:
            return None
        weight = layer._parameters.get("weight")
        if not isinstance(weight, Parameter) or weight.is_inference() or not weight.is_cpu:
            return None  # computed: no identity to remember; made in inference mode: no version
        if torch.is_autocast_enabled("cpu"):
            return None
        if torch.is_grad_enabled():
            for tensor in (x, weight, *others):
                if tensor is not None and tensor.requires_grad:
                    return None
        state = (weight.data_ptr(), weight._version, weight.dtype, weight.shape)
        if state != self._state:
            self._alias, self._state = weight.detach(), state
            self._by_size, self._last = {}, ((), None)
            last = self._last
        if last[0] != seen:
            if seen not in self._by_size:
                self._by_size[seen] = self._pack(layer, x, weight, padding)
            last = self._last = seen, self._by_size[seen]
        return last[1]

    def _pack(self, layer: Any, x: Tensor, weight: Tensor, padding: Any) -> Tensor | None:
        packed = ops.conv2d_pack(
            x,
            weight,
            layer.stride,
            padding,
            layer.dilation,
            layer.groups,
            algorithm=layer.algorithm,
        )
        for other in self._by_size.values():  # one copy for all sizes that run on one kernel
            if packed is not None and other is not None and torch.equal(packed, other):
                return other
        return packed

    def __deepcopy__(self, memo: Any) -> PackedWeight:
        return PackedWeight()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, ()
