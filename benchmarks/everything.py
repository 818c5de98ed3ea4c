"""All runs of benchmarks/runs.txt one after the other, each in a process of its own; some hours."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from .turns import search_path


def commands() -> list[str]:
    """The lines of runs.txt."""
    lines = (Path(__file__).parent / "runs.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", default="", metavar="REGEX", help="only lines that match")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    worst = 0
    for line in commands():
        if re.search(args.filter, line):
            print(f"--- {line}", flush=True)
            command = [sys.executable, "-m", str(__package__), *shlex.split(line)]
            environment = {**os.environ, "PYTHONPATH": search_path()}
            worst = max(worst, abs(subprocess.run(command, env=environment).returncode))
    return worst
