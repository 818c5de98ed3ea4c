"""Rewrites the tables of the README, between their markers, from the runs in benchmarks/results."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.conv2d import PASSES
from benchmarks.harness import RESULTS, geometric_mean

README = Path(__file__).parent.parent / "README.md"


def said_of(run: dict[str, Any]) -> str:
    """One line on the conditions of a run."""
    c = run["conditions"]
    shared = {True: "shared", False: "did not share", None: "had no second core to share"}
    return (
        f"{c['cpu']}, {c['threads']} thread{'s' if c['threads'] > 1 else ''}, {c['isa']}, torch {c['torch']}, "
        f"{c['date'][:10]}, commit {c['commit']}: {c['flops'] / 1e9:.0f} GFLOP/s of multiply-adds, "
        f"{c['copy_bytes_per_second'] / 1e9:.0f} GB/s copied; malloc {c['malloc']}; the cores "
        f"{shared[c['cores_share_a_cache']]} a last-level cache."
    )


def conv2d_table(run: dict[str, Any]) -> str:
    rows = [r for r in run["rows"] if "speedup" in r]
    lines = [
        f"Convolution, {run['dtype']}, torch's time over ours (above 1 is faster), forward / input gradient / "
        "weight gradient:",
        "",
        "| layer | NCHW | channels_last | kernels |",
        "|---|---|---|---|",
    ]
    for layer in dict.fromkeys(r["layer"] for r in rows):
        of_layer = [r for r in rows if r["layer"] == layer]
        cells = []
        for layout in ("NCHW", "NHWC"):
            ratios = {r["pass"]: f"{r['speedup']:.2f}" for r in of_layer if r["layout"] == layout}
            cells.append(" / ".join(ratios.get(p, "-") for p in PASSES))
        kernels = ", ".join(dict.fromkeys(r["kernel"] for r in of_layer))
        lines.append(f"| {layer} | {cells[0]} | {cells[1]} | {kernels} |")
    ratios = [r["speedup"] for r in rows]
    losses = [r for r in rows if r["speedup"] < 1]
    lines += [
        "",
        f"Geometric mean {geometric_mean(ratios):.2f} over {len(rows)} rows; slower than torch in {len(losses)}, "
        f"at worst {min(ratios):.2f}. {said_of(run)}",
    ]
    return "\n".join(lines)


def steps_table(run: dict[str, Any]) -> str:
    lines = [
        "| network | layout | training step, ms (torch) | inference, ms (torch) |",
        "|---|---|---|---|",
    ]
    cells = {(r["network"], r["layout"], r["mode"]): r for r in run["rows"]}
    for network, layout in dict.fromkeys((r["network"], r["layout"]) for r in run["rows"]):
        texts = []
        for mode in ("train", "infer"):
            r = cells[network, layout, mode]
            texts.append(f"{r['pyconv'] * 1e3:.2f} ({r['torch'] * 1e3:.2f}), x{r['speedup']:.2f}")
        lines.append(f"| {network} | {layout} | {texts[0]} | {texts[1]} |")
    return "\n".join([*lines, "", said_of(run)])


TABLES = {"conv2d": ("conv2d-float32-2t", conv2d_table), "steps": ("steps-2t", steps_table)}


def rewrite(text: str, name: str, table: str) -> str:
    """`text` with `table` between <!-- benchmark name --> and <!-- end -->."""
    marked = re.compile(rf"(<!-- benchmark {name} -->\n).*?(<!-- end -->)", re.S)
    if not marked.search(text):
        raise SystemExit(f"report: {README.name} has no markers for the table {name}")
    return marked.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    text = README.read_text()
    for name, (file, table) in TABLES.items():
        path = RESULTS / f"{file}.json"
        if path.exists():
            text = rewrite(text, name, table(json.loads(path.read_text())))
            sys.stdout.write(f"{name}: from {path.name}\n")
        else:
            sys.stdout.write(f"{name}: left as it is, {path.name} has not been run\n")
    README.write_text(text)
    return 0
