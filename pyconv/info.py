"""What is installed, what was chosen, and the reason for anything missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pyconv import _native

_LIBRARIES = ("pyconv", "libtorch", "libc10", "libcuda", "libcudnn", "gomp", "iomp", "mkl", "dnnl")


def info() -> dict[str, Any]:
    """Return what ``python -m pyconv info`` prints, as a dict that json can write."""
    lib = _native.lib
    return {
        "pyconv": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "extension": lib.__file__ if lib else None,
        "extension_missing": _native.reason or None,
        "build": dict(lib.build) if lib else {},
        "isa": lib.isa() if lib else None,
        "available_isas": lib.available_isas() if lib else [],
        "isa_override": os.environ.get("PYCONV_ISA"),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "cuda": _cuda_devices(),
        "cuda_missing": _native.cuda_reason or None,
        "algorithms": {op: list(names) for op, names in lib.algorithms.items()} if lib else {},
        "libraries": _loaded_libraries(),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("pyconv")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: imported from a source tree"


def _cuda_devices() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _loaded_libraries() -> list[str]:
    """Return the shared libraries in this process that compute or decide; empty without /proc."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/" in line}
    names = (path for path in paths if ".so" in Path(path).name)
    return sorted(
        path
        for path in names
        if any(key in Path(path).name for key in _LIBRARIES) or "/pyconv/_C" in path
    )


def text(found: dict[str, Any]) -> str:
    """Return ``found``, the result of `info`, as lines for people."""
    isas = ", ".join(found["available_isas"])
    override = f", PYCONV_ISA={found['isa_override']}" if found["isa_override"] else ""
    rows = [
        ("pyconv", found["pyconv"]),
        ("python", found["python"]),
        ("torch", found["torch"]),
        ("platform", found["platform"]),
        ("extension", found["extension"] or f"missing: {found['extension_missing']}"),
        ("built with", ", ".join(f"{k} {v}" for k, v in found["build"].items()) or "missing"),
        ("ISA", f"{found['isa']} (of {isas}{override})" if found["isa"] else "missing"),
        ("threads", f"{found['threads']} (of {found['cores']} cores)"),
        ("GPUs", ", ".join(found["cuda"]) or "none"),
        ("CUDA kernels", (found["cuda_missing"] and f"missing: {found['cuda_missing']}") or "yes"),
        *((op, ", ".join(names)) for op, names in found["algorithms"].items()),
        *(("loaded", path) for path in found["libraries"]),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``info``."""
    parser.description = info.__doc__
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Print; return the exit code."""
    found = info()
    sys.stdout.write((json.dumps(found, indent=2) if args.json else text(found)) + "\n")
    return 0
