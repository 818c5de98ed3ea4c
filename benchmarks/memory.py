"""Peak memory of one call beyond its operands and its result, for every algorithm and for torch.

Measured from outside, the same way for all: a new process calls once, and the kernel says how far its anonymous memory
rose. Good to half a megabyte. What the caller's library keeps for its next call is in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from pyconv._conv_string import conv2d
from pyconv._explain import candidate_call, explain_case

from . import conv2d as layers
from . import fresh, output, run
from .summary import name_of


def peak(case: str, dtype: str, layout: str, direction: str, algorithm: str) -> tuple[int, int]:
    """Bytes beyond operands and result, and of the result, of one call by an algorithm or "torch"."""
    (torch.ones(2**20) + 1).sum()  # starts the threads
    last = layout == "NHWC"
    call = candidate_call(conv2d(case), getattr(torch, dtype), last, direction, algorithm)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, code_before = _status("VmRSS"), _status("RssFile")
    result = call()
    code = _status("RssFile") - code_before  # pages of the libraries, read for the first time
    size = result.numel() * result.element_size()
    return max(0, _status("VmHWM") - before - code - size), size


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    a = parser.add_argument
    a("--tier", choices=layers.TIERS, default="core", help="of benchmarks/conv2d.txt (core)")
    a("--filter", default="", metavar="REGEX", help="only names that contain this")
    a("--dtype", choices=layers.DTYPES, default="float32")
    a("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (all)")
    a("--layout", choices=run.LAYOUTS, default="both")
    a("--output", type=Path, default=output.RESULTS, metavar="FOLDER", help=f"({output.RESULTS})")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    record = run.record(args, rows)
    for case in layers.chosen(args.tier, args.filter):
        for layout in run.LAYOUTS[args.layout]:
            found = explain_case(case, getattr(torch, args.dtype), layout == "NHWC")
            for plan in found.passes:
                # The reference sums in place and is slow: nothing to learn from it.
                able = [k.name for k in plan.candidates if not k.cannot and k.name != "reference"]
                row: dict[str, Any] = {"layer": str(case), "layout": layout, "pass": plan.name}
                row |= {"kernel": plan.chosen, "players": {}}
                for algorithm in (*able, "torch"):
                    asked = (case.text, args.dtype, layout, plan.name, algorithm)
                    extra, row["result"] = fresh.call(peak, *asked, threads=args.threads)
                    row["players"][algorithm] = {"extra": extra}
                rows.append(row)
                sizes = (f"{n} {m['extra'] / 2**20:.1f}" for n, m in row["players"].items())
                print(
                    f"{name_of(row):<32} result {row['result'] / 2**20:.1f} MB,"
                    f" beyond it: {', '.join(sizes)}",
                    flush=True,
                )
    name = f"memory-{args.dtype}-{args.threads}t" + ("-part" if args.filter else "")
    for path in output.write(args.output, name, record):
        print(path)
    return 0
