"""``python -m pyconv bench``: finds the benchmarks.

They are the folder benchmarks/ of the repository, and ``python -m benchmarks`` there. An installed pyconv carries the
same folder as the package pyconv.benchmarks (setup.py).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType


def benchmarks() -> ModuleType:
    """The benchmarks' command line, a checkout's own before an installed copy."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "benchmarks" / "conv2d.txt").exists():
        return importlib.import_module("pyconv.benchmarks.__main__")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module("benchmarks.__main__")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of ``bench``."""
    benchmarks().add_arguments(parser)
