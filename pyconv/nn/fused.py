"""The layer that pyconv.fuse makes of several."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pyconv import ops
from pyconv.nn.conv import Conv2d


class FusedConv2d(Conv2d):
    """act(conv2d(x) + residual) in one pass, for inference: pyconv.ops.conv2d_fused as a layer.

    act(v) is min(relu(v), ceiling) if `relu`, else v; the residual is an optional second input. A convolution
    whose parameters hold what batch norm made of them; they want no gradient and the layer has no
    training mode. `stands_for` names the layers it replaces, for its repr.
    """

    def __init__(
        self,
        *args: Any,
        relu: bool = False,
        ceiling: float = math.inf,
        stands_for: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        self.relu = relu
        self.ceiling = ceiling
        self.stands_for = stands_for
        self.training = False

    @classmethod
    def like(
        cls,
        conv: torch.nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        ceiling: float | None,
        stands_for: str,
    ) -> FusedConv2d:
        """The geometry of `conv`, other values; no ReLU where `ceiling` is None."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias is not None,
            conv.padding_mode,
            device="meta",
            relu=ceiling is not None,
            ceiling=math.inf if ceiling is None else ceiling,
            stands_for=stands_for,
        )
        layer.weight = Parameter(weight, requires_grad=False)
        layer.bias = None if bias is None else Parameter(bias, requires_grad=False)
        if (algorithm := getattr(conv, "algorithm", None)) is not None:
            layer.algorithm = algorithm
        return layer

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        x, padding = self._padded(input)
        if residual is not None and not self._fits(x, padding, residual):
            y = self._fused(x, None, False, padding) + residual  # broadcast or promoted
            return y.clamp(0, self.ceiling) if self.relu else y
        return self._fused(x, residual, self.relu, padding)

    def _fused(self, x: Tensor, residual: Tensor | None, relu: bool, padding: Any) -> Tensor:
        packed = None
        if self.packed_weight is not None:
            packed = self.packed_weight.of(self, x, padding, self.bias, residual)
        return ops.conv2d_fused(
            x,
            self.weight,
            self.bias,
            residual,
            relu,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            ceiling=self.ceiling if relu else math.inf,
            packed=packed,
            algorithm=self.algorithm,
        )

    def _fits(self, x: Tensor, padding: Any, residual: Tensor) -> bool:
        """Whether `residual` has the size and dtype of the convolution's output."""
        device = x.device.type
        casts = device != "meta" and torch.is_autocast_enabled(device)
        if residual.dtype != (torch.get_autocast_dtype(device) if casts else x.dtype):
            return False
        size = [*x.shape[:-3], self.out_channels]
        for i in (0, 1):
            reach = self.dilation[i] * (self.kernel_size[i] - 1)
            added = reach if padding == "same" else 0 if padding in ("valid", 0) else 2 * padding[i]
            size.append((x.shape[i - 2] + added - reach - 1) // self.stride[i] + 1)
        return list(residual.shape) == size

    def train(self, mode: bool = True) -> FusedConv2d:
        if mode:
            raise RuntimeError(
                "FusedConv2d: a fused model is for inference; train the model that pyconv.fuse was"
                " given, and fuse it again"
            )
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stands_for={self.stands_for!r}"
