"""Pooling layers: (N, C, H, W) -> (N, C, OH, OW), or the same without N."""

from __future__ import annotations

import torch
from torch import Tensor

from pyconv import ops
from pyconv.nn._algorithm import AlgorithmMixin


class MaxPool2d(AlgorithmMixin, torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on pyconv.ops.max_pool2d."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            algorithm=self.algorithm,
        )


class AvgPool2d(AlgorithmMixin, torch.nn.AvgPool2d):
    """torch.nn.AvgPool2d on pyconv.ops.avg_pool2d."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            algorithm=self.algorithm,
        )


class AdaptiveAvgPool2d(AlgorithmMixin, torch.nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d on pyconv.ops.adaptive_avg_pool2d."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(input, self.output_size, algorithm=self.algorithm)


class AdaptiveMaxPool2d(AlgorithmMixin, torch.nn.AdaptiveMaxPool2d):
    """torch.nn.AdaptiveMaxPool2d on pyconv.ops.adaptive_max_pool2d."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return ops.adaptive_max_pool2d(
            input, self.output_size, self.return_indices, algorithm=self.algorithm
        )


class MaxUnpool2d(AlgorithmMixin, torch.nn.MaxUnpool2d):
    """torch.nn.MaxUnpool2d on pyconv.ops.max_unpool2d."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        return ops.max_unpool2d(
            input,
            indices,
            self.kernel_size,
            self.stride,
            self.padding,
            output_size,
            algorithm=self.algorithm,
        )
