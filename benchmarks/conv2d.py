"""Convolution layer by layer: forward, input gradient and weight gradient apart, both layouts, beside torch."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import conditions, geometric_mean, relative_error, write
from pyconv._conv_string import Conv2dCase, conv2d
from pyconv._explain import PASSES, candidate_call, explain_case, operands, torch_call
from pyconv._timing import alternate

TIERS = ("smoke", "core", "full")
# A result this far from float64 is wrong, not rounded; Winograd's float32 stays below 1e-5.
LARGEST_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 5e-3,
}


def layers(tier: str = "full") -> list[Conv2dCase]:
    """The layers of benchmarks/conv2d.txt up to a tier."""
    cases = []
    for line in (Path(__file__).parent / "conv2d.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            text, of_tier, _ = line.split("|")
            if TIERS.index(of_tier.split()[0]) <= TIERS.index(tier):
                cases.append(conv2d(text.strip()))
    return cases


def judge_of(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool, direction: str
) -> torch.Tensor:
    """torch's float64 result for the very operands that `dtype` rounds to."""
    torch.manual_seed(1)
    x, w, dy = (t.double() for t in operands(case, dtype, channels_last))
    return torch_call(case, x, w, dy, direction)()


def row(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool, direction: str, seconds: float
) -> dict[str, Any]:
    """Times one direction of one layer; no time without a right result."""
    wrong_by = relative_error_of(case, dtype, channels_last, direction)
    found = explain_case(case, dtype, channels_last)
    plan = next(p for p in found.passes if p.name == direction)
    result = {
        "layer": str(case),
        "case": case.text,
        "layout": "NHWC" if channels_last else "NCHW",
        "pass": direction,
        "kernel": plan.chosen,
        "error": wrong_by,
    }
    if not wrong_by <= LARGEST_ERROR[dtype]:
        return {**result, "wrong": True}
    calls = {
        "pyconv": candidate_call(case, dtype, channels_last, direction, ""),
        "torch": candidate_call(case, dtype, channels_last, direction, "torch"),
    }
    times = alternate(calls, seconds=seconds)
    return {
        **result,
        **{name: t.median for name, t in times.items()},
        "reliable": all(t.reliable for t in times.values()),
        "speedup": times["torch"].median / times["pyconv"].median,
        "gflops": found.flops / times["pyconv"].median / 1e9,
        "roof": plan.bound / times["pyconv"].median,
    }


def relative_error_of(
    case: Conv2dCase, dtype: torch.dtype, channels_last: bool, direction: str
) -> float:
    small = case.with_batch(min(case.mb, 2))
    torch.manual_seed(1)
    ours = candidate_call(small, dtype, channels_last, direction, "")()
    return relative_error(ours, judge_of(small, dtype, channels_last, direction))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tier", choices=TIERS, default="core")
    parser.add_argument("--only", default="", help="regular expression on the layer's name")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--batch", type=int, help="overrides every layer's batch")
    parser.add_argument("--layout", choices=["nchw", "nhwc", "both"], default="both")
    parser.add_argument("--passes", default=",".join(PASSES))
    parser.add_argument("--seconds", type=float, default=0.2, help="per call and row")
    parser.add_argument("--name", help="of the file in benchmarks/results")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    dtype = getattr(torch, args.dtype)
    run: dict[str, Any] = {"conditions": conditions(args.threads), "dtype": args.dtype, "rows": []}
    layouts = {"nchw": (False,), "nhwc": (True,), "both": (False, True)}[args.layout]
    for case in layers(args.tier):
        if not re.search(args.only, str(case)):
            continue
        case = case.with_batch(args.batch) if args.batch else case
        for channels_last in layouts:
            for direction in args.passes.split(","):
                r = row(case, dtype, channels_last, direction, args.seconds)
                run["rows"].append(r)
                sys.stdout.write(_line(r) + "\n")
                sys.stdout.flush()
    timed = [r for r in run["rows"] if "speedup" in r]
    sys.stdout.write(summary(timed) + "\n")
    name = args.name or f"conv2d-{args.dtype}-{args.threads}t" + (
        f"-mb{args.batch}" if args.batch else ""
    )
    sys.stdout.write(f"{write(name, run)}\n")
    return 0 if len(timed) == len(run["rows"]) else 1


def _line(r: dict[str, Any]) -> str:
    head = f"{r['layer']:<22} {r['layout']} {r['pass']:<10} {r['kernel']:<18}"
    if "wrong" in r:
        return f"{head} WRONG: error {r['error']:.1e}"
    return (
        f"{head} {r['pyconv'] * 1e3:9.3f} ms {r['gflops']:7.1f} GFLOP/s {r['roof']:4.0%} of roof"
        f"  torch {r['torch'] * 1e3:9.3f} ms  x{r['speedup']:.2f}{'' if r['reliable'] else ' ?'}"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric means over all and by layout and pass; every loss by name."""
    ratios = [r["speedup"] for r in rows]
    lines = [f"geometric mean over torch: {geometric_mean(ratios):.2f} over {len(rows)} rows"]
    for layout in ("NCHW", "NHWC"):
        for direction in PASSES:
            part = [r["speedup"] for r in rows if (r["layout"], r["pass"]) == (layout, direction)]
            if part:
                lines.append(
                    f"  {layout} {direction:<10} {geometric_mean(part):.2f} (worst {min(part):.2f})"
                )
    lines += [
        f"  slower than torch: {r['layer']} {r['layout']} {r['pass']} x{r['speedup']:.2f} ({r['kernel']})"
        for r in sorted(rows, key=lambda r: r["speedup"])
        if r["speedup"] < 1
    ]
    return "\n".join(lines)
