"""Functions run in a process of their own: no cache of shapes, no scratch memory and no plan is left from before.

The process is forked from a server that has imported torch and pyconv and called neither, so it starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


def call(function: Callable[..., _Result], *arguments: object, threads: int) -> _Result:
    """function(*arguments) in a new process; both must be picklable."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with context.Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(function, arguments)
