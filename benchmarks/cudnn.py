"""A GPU: our kernels, and torch's with cuDNN's two switches, search for the fastest algorithm and TF32 for float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyconv import _native
from pyconv._conv_string import Conv2dCase
from pyconv._explain import our_call, torch_call

# name: (torch.backends.cudnn.benchmark, allow_tf32)
VARIANTS = {
    "cudnn": (False, False),
    "cudnn benchmark": (True, False),
    "cudnn tf32": (False, True),
    "cudnn benchmark tf32": (True, True),
}
LARGEST_TF32_ERROR = 2e-3  # operands rounded to 10 bits


def missing() -> str:
    """Why nothing can be timed on a GPU, or ""."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return _native.cuda_reason


def layer(
    player: str,
    case: Conv2dCase,
    tensors: tuple[Tensor, Tensor, Tensor],
    direction: str,
    channels_last: bool,
) -> Callable[[], Tensor]:
    """One direction of a convolution on the GPU: pyconv's, or torch's under the variant's switches."""
    x, w, dy = (t.cuda() for t in tensors)
    if player == "pyconv":
        return our_call(case, x, w, dy, direction, channels_last)
    benchmark, tf32 = VARIANTS[player]
    call = torch_call(case, x, w, dy, direction)

    def switched() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=tf32):
            return call()

    return switched


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Median of CUDA events around single calls, the last-level cache flushed before each."""
    from triton.testing import do_bench  # comes with torch for CUDA

    once = do_bench(call, warmup=0, rep=1, return_mode="median")
    return do_bench(call, warmup=0, rep=max(1.0, calls * once), return_mode="median") / 1e3
