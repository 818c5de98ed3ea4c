"""The conditions of a run: what a reader must know of the machine to believe a number, measured in that run."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pyconv import _native
from pyconv._timing import alternate
from pyconv.info import info

from .subject import last_cache_bytes

BUSY = 0.2  # cores that others use: a core shared with someone gives times in whole time slices
NEAR = 200  # nanoseconds: 65 to 90 within one last-level cache, 320 to 355 across two (Zen 4)


def kernels() -> Any:
    """The compiled half; without it there is nothing to time."""
    if _native.lib is None:
        raise SystemExit(f"there is nothing to time: {_native.reason}")
    return _native.lib


def conditions(threads: int, dtype: str = "float32") -> dict[str, Any]:
    lib = kernels()
    others = cores_in_use()
    if others > BUSY:
        sys.stderr.write(f"Others use {others:.1f} cores: these times will mean little.\n")
    torch.set_num_threads(threads)
    source, target = torch.ones(2**26), torch.empty(2**26)
    copy = alternate({"copy": lambda: target.copy_(source)}, seconds=0.5)["copy"].fastest
    # The least of many: a third process on either core makes one handing-over last a time slice.
    trip = min(lib.round_trip_nanoseconds(0.02) for _ in range(10)) if threads > 1 else 0
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "commit": _commit(),
        "cpu": _cpu(),
        "threads": threads,
        "cores_in_use_by_others": others,
        "isa": lib.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "flops": max(lib.measured_flops(dtype, threads, 0.05) for _ in range(10)),
        "copy_bytes_per_second": 2 * 4 * 2**26 / copy,
        "last_cache_bytes": last_cache_bytes(),
        "core_to_core_ns": trip,
        "cores_share_a_cache": None if not trip else trip < NEAR,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "info": info(),
    }


def said_of(c: dict[str, Any]) -> str:
    """The conditions in one sentence."""
    shared = {True: "share", False: "do not share"}.get(c["cores_share_a_cache"])
    cores = (
        f"; the cores {shared} a last-level cache ({c['core_to_core_ns']:.0f} ns round trip)"
        if shared
        else ""
    )
    others = c["cores_in_use_by_others"]
    busy = f"; others used {others:.1f} cores" if others > BUSY else ""
    return (
        f"{c['cpu']}, {c['threads']} thread{'s' if c['threads'] > 1 else ''}, {c['isa']}, torch {c['torch']}, "
        f"{c['date'][:10]}, commit {c['commit']}: {c['flops'] / 1e9:.0f} GFLOP/s of multiply-adds, "
        f"{c['copy_bytes_per_second'] / 1e9:.0f} GB/s copied{cores}{busy}."
    )


def cores_in_use(seconds: float = 0.5) -> float:
    """How many cores work while this process sleeps; 0 where Linux does not say."""
    if not os.path.exists("/proc/stat"):
        return 0.0
    before = _cpu_ticks()
    time.sleep(seconds)
    used, all_ = (now - then for now, then in zip(_cpu_ticks(), before))
    return (os.cpu_count() or 1) * used / max(all_, 1)


def _cpu_ticks() -> tuple[int, int]:
    """(working, all) of all cores since the start, from /proc/stat; waiting for a disk is not working."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _commit() -> str:
    """Of a checkout; an installed pyconv has a version instead, in `info`."""
    if __package__ != "benchmarks":
        return "installed"
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or "unknown"


def _cpu() -> str:
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()
