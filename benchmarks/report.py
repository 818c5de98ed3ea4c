"""Rewrites the tables of the README between their markers, and docs/benchmarks.md, from the runs of a folder.

Runs of a part of the layers (files named -part) are for who made them, not for the report.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from . import tables
from .output import RESULTS


def rewrite(text: str, name: str, table: str) -> str:
    """`text` with `table` between <!-- benchmark name --> and <!-- end -->.

    Raises:
        ValueError: there are no such markers.
    """
    marked = re.compile(rf"(<!-- benchmark {name} -->\n).*?(<!-- end -->)", re.S)
    if not marked.search(text):
        raise ValueError(f"there are no markers for the table {name}")
    return marked.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text, count=1)


def order(run: tables.Record) -> tuple[object, ...]:
    """The plain run first: all threads, float32, each layer's own batch, eager torch."""
    a = run["arguments"]
    return (
        ["conv2d", "memory_bound", "steps", "sizes", "memory"].index(run["benchmark"]),
        *(
            a.get(key, "") not in ("", "None", "[]", "False", "cpu")
            for key in ("device", "peers", "cold", "passes")
        ),
        a.get("dtype", "float32") != "float32",
        -run["conditions"]["threads"],
        a.get("batch", "None") != "None",
        a.get("dtype", ""),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    a = parser.add_argument
    a("--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"({RESULTS})")
    a("--readme", type=Path, default=Path("README.md"), help="its tables are rewritten")
    a("--document", type=Path, default=Path("docs/benchmarks.md"), help="gets every row")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    files = [p for p in args.results.glob("*.json") if not p.stem.endswith("-part")]
    runs = sorted((json.loads(p.read_text()) for p in files), key=order)
    if not runs:
        sys.stderr.write(f"report: {args.results} has no runs\n")
        return 2
    text = args.readme.read_text()
    for name, table in tables.readme(runs).items():
        text = rewrite(text, name, table)
        sys.stdout.write(f"{args.readme}: {name}\n")
    args.readme.write_text(text)
    args.document.write_text(tables.document(runs))
    sys.stdout.write(f"{args.document}: {len(runs)} runs\n")
    return 0
