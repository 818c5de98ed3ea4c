"""What the references share: layouts, the type of sums, the pixels a kernel tap meets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def format_of(*tensors: Tensor) -> torch.memory_format:
    """channels_last if any tensor's strides say so."""
    last = any(torch._prims_common.suggest_memory_format(t) == torch.channels_last for t in tensors)
    return torch.channels_last if last else torch.contiguous_format


def wide(t: Tensor) -> Tensor:
    """Sums of bfloat16 and float16 run in float32."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def clipped(y: Tensor, ceiling: float) -> Tensor:
    """min(relu(y), ceiling)."""
    return torch.relu(y) if ceiling == math.inf else torch.clamp(y, 0, ceiling)


def taps(kh: int, kw: int) -> Iterator[tuple[int, int]]:
    """The positions of a kernel, row by row."""
    return ((i, j) for i in range(kh) for j in range(kw))


def seen_by(tap: int, out: int, stride: int, dilation: int) -> slice:
    """The padded rows that kernel row `tap` meets while the window slides over `out` positions."""
    first = tap * dilation
    return slice(first, first + (out - 1) * stride + 1, stride)
