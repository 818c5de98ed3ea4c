"""Many input sizes, once each: what a first call costs, where a library may plan, compile or pack for every new size.

Each player has a process of its own, new for each round, and sees the sizes in the same order; then all of them again,
which shows what its caches of shapes are worth. One more row is the time from `import` to the first result.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import pyconv
from pyconv._conv_string import conv2d

from . import fresh, networks, output, run
from .subject import LARGEST_ERROR, errors

# What sees images (C, H, W) of many sizes: a network by its name, or a layer as a conv string.
SUBJECTS = {
    "3x3, 64 to 64": "ic64ih32oc64kh3ph1",
    "1x1, 64 to 128": "ic64ih32oc128kh1",
    "depthwise 3x3, 144": "ic144g144ih32oc144kh3ph1",
    "resnet20": "resnet20",
}
LEAST, MOST = 16, 112  # pixels a side
FIRST_RESULT = {
    "pyconv": "import torch; from pyconv import ops; conv2d = ops.conv2d",
    "torch": "import torch; conv2d = torch.nn.functional.conv2d",
}


def images(number: int) -> list[tuple[int, int]]:
    """That many different (H, W), always the same."""
    every = [(h, w) for h in range(LEAST, MOST + 1) for w in range(LEAST, MOST + 1)]
    return random.Random(0).sample(every, number)


def model(subject: str) -> tuple[Module, int]:
    """The subject with torch's layers, and its input channels."""
    torch.manual_seed(0)
    if subject in networks.NETWORKS:
        network = networks.NETWORKS[subject]
        return network.build().eval(), network.image[0]
    c = conv2d(subject)
    return torch.nn.Conv2d(c.ic, c.oc, c.kh, padding=c.ph, groups=c.g, bias=False).eval(), c.ic


def first_and_again(player: str, subject: str, layout: str, number: int) -> dict[str, float]:
    """Seconds of all sizes, once each and once more, and the error at the last of them."""
    network, channels = model(subject)
    exact = copy.deepcopy(network).double()
    format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    network.to(memory_format=format)  # type: ignore[call-overload]
    if player == "pyconv":
        pyconv.convert(network, report=lambda _: None)
    inputs = [torch.randn(1, channels, h, w).to(memory_format=format) for h, w in images(number)]

    def every() -> Tensor:
        with torch.inference_mode():
            for x in inputs:
                y = network(x)
        return y

    found: dict[str, float] = {}
    for name in ("first", "again"):
        start = time.perf_counter()
        actual = every()
        found[name] = time.perf_counter() - start
    with torch.inference_mode():
        found["error"], found["max_error"] = errors(actual, exact(inputs[-1].double()))
    return found


def first_result(player: str) -> dict[str, float]:
    """Seconds from the start of Python to the first output of one small convolution."""
    code = f"{FIRST_RESULT[player]}; conv2d(torch.ones(1, 3, 32, 32), torch.ones(8, 3, 3, 3))"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return {"first": time.perf_counter() - start}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: median(r[key] for r in rounds) for key in rounds[0]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    a = parser.add_argument
    a("--filter", default="", metavar="REGEX", help=f"of {', '.join(SUBJECTS)}, import")
    a("--number", type=int, default=200, help="of sizes (200)")
    a("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (all)")
    a("--layout", choices=run.LAYOUTS, default="both")
    a("--rounds", type=int, default=3, help="processes of each player; the median counts (3)")
    a("--output", type=Path, default=output.RESULTS, metavar="FOLDER", help=f"({output.RESULTS})")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    record = run.record(args, rows)
    for name, subject in SUBJECTS.items():
        for layout in run.LAYOUTS[args.layout] if re.search(args.filter, name) else ():
            rounds: dict[str, list[dict[str, float]]] = {"pyconv": [], "torch": []}
            for _ in range(args.rounds):
                for player, times in rounds.items():
                    asked = (first_and_again, player, subject, layout, args.number)
                    times.append(fresh.call(*asked, threads=args.threads))
            players = {player: medians(times) for player, times in rounds.items()}
            rows.append({"what": f"{name}, {layout}", "sizes": args.number, "players": players})
            print(line(rows[-1]), flush=True)
    if re.search(args.filter, "import"):
        first = {p: medians([first_result(p) for _ in range(args.rounds)]) for p in FIRST_RESULT}
        rows.append({"what": "import and first result", "sizes": 1, "players": first})
        print(line(rows[-1]))
    for path in output.write(
        args.output, f"sizes-{args.threads}t{'-part' if args.filter else ''}", record
    ):
        print(path)
    return int(
        any(r["players"]["pyconv"].get("error", 0) > LARGEST_ERROR[torch.float32] for r in rows)
    )


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    ours, theirs = row["players"]["pyconv"], row["players"]["torch"]
    text = (
        f"{row['what']:<28} {row['sizes']:>3} sizes | pyconv {ours['first'] * 1e3:8.1f} ms"
        f" | torch {theirs['first'] * 1e3:8.1f} ms x{theirs['first'] / ours['first']:.2f}"
    )
    if "again" in ours:
        text += f" | first call / second: pyconv {ours['first'] / ours['again']:.2f}"
        text += f", torch {theirs['first'] / theirs['again']:.2f}; error {ours['error']:.0e}"
    return text
