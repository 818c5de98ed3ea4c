"""Whole networks: one training step and one inference, pyconv's layers beside torch's, and inference of one image."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from . import run
from .networks import NETWORKS
from .summary import FUSED

# name: (mode, batch; None is the network's own)
MODES: dict[str, tuple[str, int | None]] = {
    "train": ("train", None),
    "infer": ("infer", None),
    "infer1": ("infer", 1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modes", metavar="A,B", help=f"of {', '.join(MODES)} (all; no train with peers)"
    )
    run.add_arguments(parser, seconds=1.0)
    parser.set_defaults(run=main)


def tasks(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    modes = (
        args.modes.split(",")
        if args.modes
        else [m for m in MODES if m != "train" or not args.peers]
    )
    for name in NETWORKS:
        if not re.search(args.filter, name):
            continue
        for layout in run.LAYOUTS[args.layout]:
            for key in modes:
                mode, batch = MODES[key]
                shared = {"network": name, "mode": mode, "layout": layout, "batch": batch}
                yield {"kind": "step", **shared}, shared


def main(args: argparse.Namespace) -> int:
    parts = ["steps", f"{args.threads}t"] + (["peers"] if args.peers else [])
    parts += (
        ["part"] if args.filter or args.layout != "both" or (args.modes and not args.peers) else []
    )
    return run.run(
        args, "-".join(parts), ["pyconv", FUSED, "torch", *run.present(args.peers)], tasks(args)
    )
