"""Batch norm, the sum with a shortcut and ReLU as one layer, and blocks that find the three by themselves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import batchnorm
from torch.nn.modules.module import _has_any_global_hook

from pyconv import ops
from pyconv.nn._algorithm import AlgorithmMixin
from pyconv.nn.batch_norm import BatchNorm2d, _running


class BatchNormReLU2d(AlgorithmMixin, batchnorm._NormBase):
    """min(relu(batch_norm(input) + residual), ceiling): pyconv.ops.batch_norm_relu as a layer.

    Constructor, parameters, buffers and state_dict of BatchNorm2d, and `ceiling`, 6 for ReLU6 and
    infinity for ReLU; `residual`, of input's shape and dtype, is an optional second input. No
    subclass of BatchNorm2d: what replaces those by another batch norm, as
    SyncBatchNorm.convert_sync_batchnorm does, would lose the ReLU.
    """

    _check_input_dim: Any = torch.nn.BatchNorm2d._check_input_dim

    def __init__(self, *args: Any, ceiling: float = math.inf, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ceiling = ceiling

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        return _norm_relu(self, input, residual, self.ceiling)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ceiling={self.ceiling}"


def _norm_relu(norm: Any, input: Tensor, residual: Tensor | None, ceiling: float) -> Tensor:
    mean, var, training, momentum = _running(norm)
    return ops.batch_norm_relu(
        input,
        mean,
        var,
        norm.weight,
        norm.bias,
        training,
        momentum,
        norm.eps,
        residual=residual,
        ceiling=ceiling,
        algorithm=norm.algorithm,
    )


def norm_relu(norm: Module, relu: Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(x) + residual): one operator where the layers are a BatchNorm2d and a ReLU, no more."""
    fits = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
    ceiling = ceiling_of(relu)
    if fits and x.dim() == 4 and ceiling is not None and is_pair(norm, relu):
        return _norm_relu(norm, x, residual, ceiling)
    y = norm(x)
    return relu(y if residual is None else y + residual)


def is_pair(norm: Module, relu: Module) -> bool:
    """Whether relu(norm(x)) is batch_norm_relu and nothing else: our layer, torch's, and no hooks."""
    return (
        type(norm) is BatchNorm2d
        and ceiling_of(relu) is not None
        and not (_has_hooks(norm) or _has_hooks(relu) or _has_any_global_hook())
    )


def ceiling_of(relu: Module) -> float | None:
    """What a ReLU, or a ReLU6 or Hardtanh from 0 on, never exceeds; None of any other layer."""
    if type(relu) is torch.nn.ReLU:
        return math.inf
    if type(relu) is torch.nn.ReLU6 or type(relu) is torch.nn.Hardtanh:
        return relu.max_val if relu.min_val == 0 < relu.max_val else None
    return None


def _has_hooks(module: Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


class NormReLUSequential(torch.nn.Sequential):
    """A Sequential that runs a BatchNorm2d and the ReLU or ReLU6 behind it as one operator.

    The layers stay what they are: one that is replaced or gets a hook later runs by itself again.
    """

    def forward(self, input: Tensor) -> Tensor:
        layers = list(self)
        i = 0
        while i < len(layers):
            if i + 1 < len(layers) and is_pair(layers[i], layers[i + 1]):
                input = norm_relu(layers[i], layers[i + 1], input)
                i += 2
            else:
                input = layers[i](input)
                i += 1
        return input


_FUSED: dict[type, type] = {torch.nn.Sequential: NormReLUSequential}


def fused_sequential(plain: type) -> type:
    """`plain`, Sequential or a subclass of it with Sequential's forward, with NormReLUSequential's."""
    if plain not in _FUSED:
        members = {"plain_class": plain, "__reduce_ex__": _reduce, "__module__": plain.__module__}
        _FUSED[plain] = type(plain.__name__, (NormReLUSequential, plain), members)
    return _FUSED[plain]


def _reduce(module: Module, protocol: int) -> tuple[Any, ...]:
    """A class made here has no name that pickle could find it by."""
    state = tuple(object.__reduce_ex__(module, max(protocol, 2)))[2:]
    return _made_again, (vars(type(module))["plain_class"],), *state


def _made_again(plain: type) -> Any:
    return object.__new__(fused_sequential(plain))
