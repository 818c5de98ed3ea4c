"""What every operator asks of its tensors before anything is touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyconv._shapes import ShapeError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")


def batched(op: str, input: Tensor) -> Tensor:
    """The input with its batch dimension: a (C, H, W) image becomes a batch of one."""
    return input.unsqueeze(0) if input.dim() == 3 else input


def floating(op: str, input: Tensor) -> None:
    tensor(op, "input", input)
    if input.dtype not in DTYPES:
        raise ShapeError(
            f"{op}: input must be float64, float32, bfloat16 or float16, got {input.dtype}"
        )


def same_dtype(op: str, input: Tensor, **others: Tensor | None) -> None:
    """One dtype and one device for all operands; autocast will make it one where it is on."""
    floating(op, input)
    for name, other in others.items():
        if other is None:
            continue
        tensor(op, name, other)
        if other.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise ShapeError(
                f"{op}: {name} must have input's dtype {input.dtype}, got {other.dtype}"
            )
        if other.device != input.device:
            raise ShapeError(
                f"{op}: {name} must be on input's device {input.device}, got {other.device}"
            )


def algorithm_name(op: str, algorithm: str | None) -> str:
    if algorithm is None:
        return ""
    if not isinstance(algorithm, str) or not algorithm:
        raise TypeError(f"{op}: algorithm must be None or a name, got {algorithm!r}")
    return algorithm
