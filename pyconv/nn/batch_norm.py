"""Batch-norm layers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from pyconv import ops
from pyconv.nn._algorithm import AlgorithmMixin


class _Running(Protocol):
    """What the layers below share with each other and with torch's."""

    training: bool
    track_running_stats: bool
    momentum: float | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None


def _running(layer: _Running) -> tuple[Tensor | None, Tensor | None, bool, float]:
    """(running_mean, running_var, training, momentum) for this call of `layer`; counts the batch.

    Without running statistics the batch's own are used, in evaluation too. momentum=None averages
    over all batches seen: the k-th enters with weight 1/k.
    """
    mean, var, momentum = layer.running_mean, layer.running_var, layer.momentum
    if not layer.training:
        return mean, var, mean is None and var is None, momentum or 0.0
    if not layer.track_running_stats:
        return None, None, True, momentum or 0.0
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    return mean, var, True, momentum or 0.0


class BatchNorm2d(AlgorithmMixin, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on pyconv.ops.batch_norm: (N, C, H, W) -> (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        mean, var, training, momentum = _running(self)
        return ops.batch_norm(
            input,
            mean,
            var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            algorithm=self.algorithm,
        )


class LazyBatchNorm2d(torch.nn.LazyBatchNorm2d, BatchNorm2d):
    """torch.nn.LazyBatchNorm2d: num_features from the first input, then a BatchNorm2d."""

    cls_to_become = BatchNorm2d


class SyncBatchNorm(AlgorithmMixin, torch.nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm on pyconv.ops.batch_norm: (N, C, ...) -> (N, C, ...), on the CPU too.

    The one layer here that is no subclass of torch's, though it has all of its attributes:
    DistributedDataParallel refuses a model on the CPU with an instance of torch.nn.SyncBatchNorm.

    In training the statistics are those of the batches of all processes in the group together, so
    that several processes compute what one would compute from the whole batch. A process may hold
    fewer images than the others, or none.

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes torch's layers, which pyconv.convert then
    makes ours; `pyconv.nn.SyncBatchNorm.convert_sync_batchnorm` does both.
    """

    _check_input_dim: Any = torch.nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels: Any = torch.nn.SyncBatchNorm._check_non_zero_input_channels

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **bias: bool,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **bias
        )
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        mean, var, training, momentum = _running(self)
        if self.training and dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            if dist.get_world_size(group) > 1:
                mean, var = _statistics_of_all(input, group, mean, var, momentum)
                training = False
        return ops.batch_norm(
            input,
            mean,
            var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            algorithm=self.algorithm,
        )

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: object = None) -> Module:
        """As torch's: every batch norm of `module` becomes a SyncBatchNorm, but one of ours."""
        convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
        result: Module = convert.__func__(cls, module, process_group)  # calls cls for the children
        if type(result) is torch.nn.SyncBatchNorm:
            result.__class__ = cls  # type: ignore[assignment]
        return result


class _SumOverProcesses(torch.autograd.Function):
    """y = sum over processes of x, in every process; hence dx = sum over processes of dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        y = x.clone()
        dist.all_reduce(y, group=group)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _SumOverProcesses.apply(dy, ctx.group), None


def _statistics_of_all(
    input: Tensor,
    group: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """(mean, var), each (C,), of the batches of all processes; the running ones take their share.

    Two passes: sum x / M, then sum (x - mean)^2 / M with M the values per channel in all processes.
    The gradient of each process reaches the others through the two sums.
    """
    x = input if input.dtype == torch.float64 else input.float()
    channel = [0, *range(2, x.dim())]
    count = x.new_tensor([x.numel() / x.shape[1]])
    total = _SumOverProcesses.apply(torch.cat([x.sum(channel), count]), group)
    values = total[-1].item()
    if values < 2:
        raise ValueError(
            "Expected more than 1 value per channel when training, got"
            f" {values:.0f} in all processes"
        )
    mean = total[:-1] / values
    deviation = x - mean.view(-1, *[1] * (x.dim() - 2))
    var = _SumOverProcesses.apply(deviation.square().sum(channel), group) / values
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (values / (values - 1))).to(running_var.dtype), momentum)
    return mean, var
