"""What the timed commands share: their flags, the loop over tasks and mallocs, the lines and files they leave."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from . import output, peers, summary
from .machine import conditions
from .turns import MALLOC, Stage

LAYOUTS = {"nchw": ("NCHW",), "nhwc": ("NHWC",), "both": ("NCHW", "NHWC")}


def add_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The flags of every timed command."""
    a = parser.add_argument
    a("--filter", default="", metavar="REGEX", help="only names that contain this")
    a("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (all)")
    a("--layout", choices=LAYOUTS, default="both")
    a("--seconds", type=float, default=seconds, help=f"per player and row ({seconds})")
    a("--malloc", choices=[*MALLOC, "both"], default="both", help="of the timed process (both)")
    a(
        "--peers",
        type=_peers,
        default=[],
        metavar="A,B",
        help=f"{', '.join(peers.NEEDS)} or all: inference only, each player in its own process",
    )
    a("--output", type=Path, default=output.RESULTS, metavar="FOLDER", help=f"({output.RESULTS})")
    a("--name", help="of the files there")


def _peers(text: str) -> list[str]:
    names = list(peers.NEEDS) if text == "all" else text.split(",")
    for name in names:
        if name not in peers.NEEDS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(peers.NEEDS)}, all")
    return names


def present(names: Iterable[str]) -> list[str]:
    """The peers that are installed; one sentence for each that is not."""
    found = []
    for name in names:
        why = peers.missing(name)
        if why:
            sys.stdout.write(why + "\n")
        else:
            found.append(name)
    return found


def record(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run writes down: the command, the conditions, and the rows to come."""
    return {
        "benchmark": args.benchmark,
        "arguments": {
            k: str(v) for k, v in vars(args).items() if k not in ("run", "command", "benchmark")
        },
        "conditions": conditions(args.threads, getattr(args, "dtype", "float32")),
        "rows": rows,
    }


def run(
    args: argparse.Namespace,
    name: str,
    players: Sequence[str],
    tasks: Iterable[tuple[dict[str, Any], dict[str, Any]]],
) -> int:
    """Times every task under every malloc; prints a line for each, writes the files; 1 if ours is wrong or fails.

    Args:
        name: of the files, if the flags give none.
        players: who is timed; pyconv and torch share a process unless there are peers.
        tasks: (task, row): what the players are told, and what of it the row records.
    """
    chosen = list(MALLOC) if args.malloc == "both" else [args.malloc]
    rows: list[dict[str, Any]] = []
    written = record(args, rows)
    with ExitStack() as stages:
        stage = {
            malloc: stages.enter_context(Stage(args.threads, MALLOC[malloc], bool(args.peers)))
            for malloc in chosen
        }
        for task, facts in tasks:
            for malloc in chosen:
                found = stage[malloc].measure(task, players, args.seconds)
                row = {**facts, "malloc": malloc, **found.get("pyconv", {}).pop("about", {})}
                row["players"] = {
                    p: {k: v for k, v in m.items() if k != "about"} for p, m in found.items()
                }
                rows.append(row)
                sys.stdout.write(line(row) + "\n")
                sys.stdout.flush()
    sys.stdout.write(summary.text(rows) + "\n")
    for path in output.write(args.output, args.name or name, written):
        sys.stdout.write(f"{path}\n")
    bad = {p for _, p in summary.wrong(rows)} | {p for _, p, _ in summary.failed(rows)}
    return 1 if "pyconv" in bad else 0


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    parts = [f"{summary.name_of(row):<36} {row['malloc']:<7} {row.get('kernel', ''):<23}"]
    for player, m in row["players"].items():
        if "unable" in m:
            continue
        if "failed" in m:
            parts.append(f"{player} FAILED: {m['failed']}")
            continue
        if "median" not in m:
            parts.append(f"{player} WRONG, error {m['error']:.1e}")
            continue
        text = f"{player} {m['median'] * 1e3:.3f} ms{'' if m['reliable'] else ' ?'}"
        text += f" ({m['error']:.0e}, {m['faults']:.0f} faults)"
        if player == "pyconv" and (roof := summary.share_of_roof(row)):
            work, unit = (row["flops"], "GFLOP/s") if "flops" in row else (row["bytes"], "GB/s")
            text += f" {work / m['median'] / 1e9:.0f} {unit} {roof:.0%} of roof"
        if player not in summary.OURS and (ratio := summary.speedup(row, player)):
            text += f" x{ratio:.2f}"
        parts.append(text)
    return " | ".join(parts)
