"""The functions that are ours, by name."""

from typing import Any

from torch import Tensor

from pyconv.ops import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    batch_norm,
    conv2d,
    conv_transpose2d,
    max_pool2d,
    max_unpool2d,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "conv_transpose2d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_unpool2d",
]


def max_pool2d_with_indices(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """max_pool2d with return_indices=True, under torch's second name for it."""
    return max_pool2d(*args, **{**kwargs, "return_indices": True})


def adaptive_max_pool2d_with_indices(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """adaptive_max_pool2d with return_indices=True, under torch's second name for it."""
    return adaptive_max_pool2d(*args, **{**kwargs, "return_indices": True})
