"""torch on a GPU, with cuDNN's two switches: search for the fastest algorithm, and TF32 for float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyconv._conv_string import Conv2dCase

# name: (torch.backends.cudnn.benchmark, allow_tf32)
VARIANTS = {
    "cudnn": (False, False),
    "cudnn benchmark": (True, False),
    "cudnn tf32": (False, True),
    "cudnn benchmark tf32": (True, True),
}
LARGEST_TF32_ERROR = 2e-3  # operands rounded to 10 bits


def missing() -> str:
    """Why there is no GPU to time, or ""."""
    if torch.cuda.is_available():
        return ""
    return f"cuDNN is left out: torch {torch.__version__} sees no CUDA device"


def layer(
    variant: str,
    torch_call: Callable[..., Callable[[], Tensor]],
    case: Conv2dCase,
    tensors: tuple[Tensor, Tensor, Tensor],
    direction: str,
) -> Callable[[], Tensor]:
    """One direction of a convolution on the GPU under the variant's switches."""
    benchmark, tf32 = VARIANTS[variant]
    call = torch_call(case, *(t.cuda() for t in tensors), direction)

    def switched() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=tf32):
            return call()

    return switched


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Median of CUDA events around single calls, the last-level cache flushed before each."""
    from triton.testing import do_bench  # comes with torch for CUDA

    once = do_bench(call, warmup=0, rep=1, return_mode="median")
    return do_bench(call, warmup=0, rep=max(1.0, calls * once), return_mode="median") / 1e3
