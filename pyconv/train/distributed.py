"""One process or several: the few collective steps a run takes, each a no-op without torchrun.

Every process holds the whole data set and takes its share of each global batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module


def rank() -> int:
    """Return this process's number, 0 for the one that writes and prints."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return this process's number on this machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes, if torchrun started this one; leave them at the end.

    Tensors on the CPU travel by gloo, those on GPUs by nccl.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield
    finally:
        dist.destroy_process_group()


def parallel(model: Module, device: torch.device) -> Module:
    """Return ``model``, its gradients averaged over the processes during backward.

    In a group of its own. DDP's hooks and its reducer hold each other and their group for good, so
    that group's threads live until the process ends; one that then still dropped a tensor Python
    knows (those of the other functions here) would wait for an interpreter that is gone, and abort.
    """
    if not dist.is_initialized():
        return model
    devices = None if device.type == "cpu" else [device]
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=devices, process_group=dist.new_group()
    )


def share(batch: Tensor) -> Tensor:
    """Return this process's part of a batch of indices; the parts differ by at most one."""
    return batch[rank() :: world_size()]


def add(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def any_true(flag: bool) -> bool:
    """Whether ``flag`` is true in any process."""
    return bool(add(torch.tensor(int(flag)))) if dist.is_initialized() else flag


def gather(value: Any) -> list[Any]:
    """Return every process's ``value``, by rank."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def broadcast_buffers(model: Module) -> None:
    """Give every process the buffers of rank 0: the running statistics of batch norm."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
