"""What every benchmark shares: the conditions of a run, its correctness, its file."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyconv
from pyconv import _native
from pyconv.info import info

RESULTS = Path(__file__).parent / "results"


def conditions(threads: int) -> dict[str, Any]:
    """What a reader must know of the machine to believe a number; measured in this run."""
    torch.set_num_threads(threads)
    source, target = torch.ones(2**26), torch.empty(2**26)
    copy = pyconv._timing.alternate({"copy": lambda: target.copy_(source)}, seconds=0.5)["copy"]
    trip = _native.lib.round_trip_nanoseconds(0.2)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "threads": threads,
        "isa": _native.lib.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")} or "default",
        "flops": _native.lib.measured_flops("float32", threads, 0.5),
        "copy_bytes_per_second": 2 * 4 * 2**26 / copy.median,
        "core_to_core_ns": trip,
        "cores_share_a_cache": None if not trip else trip < 200,
        "info": info(),
    }


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else ()
    ):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in the 2-norm, expected in float64."""
    size = expected.norm().item()
    return ((actual.double() - expected).norm().item() / size) if size else float(actual.norm())


def geometric_mean(ratios: Iterable[float]) -> float:
    logs = [math.log(r) for r in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def write(name: str, run: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(run, indent=1) + "\n")
    return path
