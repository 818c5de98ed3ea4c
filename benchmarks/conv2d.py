"""Convolution layer by layer: forward, input gradient and weight gradient apart, both layouts, beside torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyconv._conv_string import Conv2dCase, conv2d

from . import cudnn, run
from .players import FLOAT32
from .summary import AUTOGRAD, PACKED, PASSES, family

TIERS = ("smoke", "core", "full")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Layer:
    """A line of conv2d.txt."""

    case: Conv2dCase
    tier: str
    gpu_batch: int


def layers() -> list[Layer]:
    """The layers of conv2d.txt."""
    found = []
    for line in (Path(__file__).parent / "conv2d.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            text, tier_and_gpu, _ = line.split("|")
            tier, gpu = tier_and_gpu.split()
            found.append(Layer(conv2d(text.strip()), tier, int(gpu.removeprefix("gpu="))))
    return found


def chosen(tier: str, pattern: str = "", gpu: bool = False) -> list[Conv2dCase]:
    """The layers up to a tier whose name holds the pattern, at their batch on the CPU or a GPU."""
    return [
        layer.case.with_batch(layer.gpu_batch) if gpu else layer.case
        for layer in layers()
        if TIERS.index(layer.tier) <= TIERS.index(tier) and re.search(pattern, str(layer.case))
    ]


def cases(args: argparse.Namespace) -> list[Conv2dCase]:
    """The layers that the flags ask for."""
    if args.conv:
        found = [conv2d(text) for text in args.conv]
    else:
        found = chosen(args.tier, args.filter, gpu=args.device == "cuda")
    return [case.with_batch(args.batch or case.mb) for case in found]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    a = parser.add_argument
    a("--tier", choices=TIERS, default="full", help="smoke 7 layers, core 26, full 37 (full)")
    a("--conv", action="append", metavar="TEXT", help="this layer instead, as ic64ih56oc64kh3ph1")
    a("--batch", type=int, metavar="N", help="of every layer")
    a("--dtype", choices=DTYPES, default="float32", help="below 32 bits also beside our float32")
    a(
        "--pass",
        dest="passes",
        metavar="A,B",
        help=f"of {', '.join(PASSES)} (all; fwd with peers), {AUTOGRAD}",
    )
    a("--cold", action="store_true", help="operands that lie in no cache")
    a(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="cuda: beside cuDNN and its switches",
    )
    a("--tf32", action="store_true", help="on cuda: float32 on the tensor cores, ours and cuDNN's")
    run.add_arguments(parser, seconds=0.2)
    parser.set_defaults(run=main)


def passes(args: argparse.Namespace) -> list[str]:
    if args.passes:
        return args.passes.split(",")
    return ["fwd"] if args.peers else list(PASSES)


def tasks(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for case in cases(args):
        for layout in run.LAYOUTS[args.layout]:
            for direction in passes(args):
                shared: dict[str, Any] = {
                    "case": case.text,
                    "dtype": args.dtype,
                    "layout": layout,
                    "pass": direction,
                    "cold": args.cold,
                    "device": args.device,
                }
                yield (
                    {"kind": "layer", **shared},
                    {"layer": str(case), "family": family(case), **shared},
                )


def main(args: argparse.Namespace) -> int:
    unknown = set(passes(args)) - {*PASSES, AUTOGRAD}
    if unknown:
        wanted = ", ".join((*PASSES, AUTOGRAD))
        sys.stderr.write(f"conv2d: --pass must be of {wanted}, got {', '.join(unknown)}\n")
        return 2
    if args.cold and args.peers:
        sys.stderr.write("conv2d: --cold keeps many copies of a layer, too many for --peers\n")
        return 2
    players = ["pyconv", "torch", *([PACKED, *run.present(args.peers)] if args.peers else [])]
    if args.tf32 and (args.device, args.dtype) != ("cuda", "float32"):
        sys.stderr.write("conv2d: --tf32 is of float32 on --device cuda\n")
        return 2
    if args.device == "cuda":
        if why := cudnn.missing() or ("" if AUTOGRAD not in passes(args) else "no pass autograd"):
            sys.stderr.write(f"conv2d: --device cuda: {why}\n")
            return 2
        float32 = args.dtype == "float32"  # TF32 stands in for no other type
        players = ["pyconv", *(v for v in cudnn.VARIANTS if float32 or "tf32" not in v)]
        if args.tf32:
            players = ["pyconv", *(v for v in cudnn.VARIANTS if "tf32" in v)]
            os.environ["PYCONV_ALLOW_TF32"] = "1"  # of the timed processes
    elif args.dtype in ("bfloat16", "float16"):
        players.append(FLOAT32)
    return run.run(args, file_name(args), players, tasks(args))


def file_name(args: argparse.Namespace) -> str:
    """conv2d-float32-2t, and what else differs from the plain run; -part for some of the layers only."""
    parts = ["conv2d", args.dtype, f"{args.threads}t"]
    parts += [f"mb{args.batch}"] if args.batch else []
    parts += ["cold"] if args.cold else []
    parts += ["cuda"] if args.device == "cuda" else []
    parts += ["tf32"] if args.tf32 else []
    parts += ["peers"] if args.peers else []
    parts += args.passes.split(",") if args.passes and not args.peers else []
    parts += (
        ["part"] if args.conv or args.filter or args.tier != "full" or args.layout != "both" else []
    )
    return "-".join(parts)
