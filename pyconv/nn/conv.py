"""Convolution layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyconv import ops
from pyconv.nn._algorithm import AlgorithmMixin
from pyconv.nn._packed import PackedWeight


class Conv2d(AlgorithmMixin, torch.nn.Conv2d):
    """torch.nn.Conv2d on pyconv.ops: (N, IC, IH, IW) -> (N, OC, OH, OW)."""

    packed_weight: PackedWeight | None = None  # set by pyconv.prepack

    def _padded(self, input: Tensor) -> tuple[Tensor, str | int | tuple[int, ...]]:
        """The input and what padding is left: the kernels pad with zeros, F.pad with anything else."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._padded(input)
        if self.packed_weight is not None and weight is self._parameters.get("weight"):
            packed = self.packed_weight.of(self, input, padding, bias)
            if packed is not None:
                return ops.conv2d_fused(
                    input,
                    weight,
                    bias,
                    None,
                    False,
                    self.stride,
                    padding,
                    self.dilation,
                    self.groups,
                    packed=packed,
                    algorithm=self.algorithm,
                )
        return ops.conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            algorithm=self.algorithm,
        )


class ConvTranspose2d(AlgorithmMixin, torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d on pyconv.ops: (N, IC, IH, IW) -> (N, OC, OH, OW)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return ops.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
            algorithm=self.algorithm,
        )


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """torch.nn.LazyConv2d: in_channels from the first input, then a Conv2d."""

    cls_to_become = Conv2d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """torch.nn.LazyConvTranspose2d: in_channels from the first input, then a ConvTranspose2d."""

    cls_to_become = ConvTranspose2d
