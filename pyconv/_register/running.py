"""Running statistics of batch norm, moved towards a batch in place:

    running_mean = (1 - momentum) * running_mean + momentum * mean
    running_var  = (1 - momentum) * running_var  + momentum * var * M / (M - 1)

for the M values of a channel: var is biased, running_var is not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from pyconv import _native
from pyconv._register._core import _compiling, _transforming, declare, wants_derivative

_functorch = torch._C._functorch
_move_both = _native.lib and declare("_batch_norm_move", 4, lambda *_: None, None)._op


def update(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    values: int,
    momentum: float,
) -> None:
    with torch.no_grad():
        _move(running_mean, mean, momentum)
        _move(running_var, var * (values / (values - 1)), momentum)


def moved(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    values: int,
    momentum: float,
) -> bool:
    """Does what update does, in one call, or says that this takes more than one.

    Three calls of torch cost as much as the batch norm of a small image: 4 us.
    """
    running = running_mean, running_var
    alike = running_mean.dtype == running_var.dtype == mean.dtype
    if not (_move_both and alike and mean.is_cpu) or wants_derivative(*running):
        return False
    if not (running_mean.is_contiguous() and running_var.is_contiguous()):
        return False
    _move_both(*running, mean, var, values, momentum)
    torch.autograd.graph.increment_version(running)
    return True


def _move(running: Tensor, batch: Tensor, momentum: float) -> None:
    transformed = not _compiling() and _transforming()
    if transformed and not _at_innermost(running):
        # A running statistic that did not come through a transform is updated outside of it; but
        # the batches of the lanes of a vmap have no one place to go.
        if _at_innermost(batch):
            if _functorch.is_batchedtensor(batch):
                raise RuntimeError(
                    "batch_norm: under vmap the running statistics of a batched input must be"
                    " batched too, for they are updated in place: pass them through vmap, or set"
                    " track_running_stats=False"
                )
            batch = _functorch.get_unwrapped(batch)
        with temporarily_pop_interpreter_stack():
            _move(running, batch, momentum)
    elif transformed or running.dtype != batch.dtype:
        running.copy_(torch.lerp(running.to(batch.dtype), batch, momentum))
    else:
        running.lerp_(batch, momentum)


def _at_innermost(t: Tensor) -> bool:
    """Whether the innermost transform that is active has wrapped this tensor."""
    return _functorch.maybe_get_level(t) == _functorch.peek_interpreter_stack().level()
