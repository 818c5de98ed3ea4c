"""Sums of runs: pure functions from rows to numbers and lines. A row is a layer, layout, pass and malloc, or a step.

{"layer": "r18.l1", "family": "3x3", "layout": "NCHW", "pass": "fwd", "malloc": "default", "kernel": "winograd",
 "flops": n, "bytes": n, "bound": seconds, "players": {"pyconv": {"median": seconds, "error": e}, "torch": ...}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pyconv._conv_string import Conv2dCase

Row = dict[str, Any]
PASSES = ("fwd", "bwd_input", "bwd_weight")
AUTOGRAD = "autograd"  # forward and both gradients, as a user asks for them
LAYOUTS = ("NCHW", "NHWC")
# Inference as the peers do it: weights packed once, and batch norm and ReLU inside the convolutions.
PACKED, FUSED = "pyconv packed", "pyconv fused"
OURS = ("pyconv", PACKED, FUSED)
FAMILIES = ("3x3", "1x1", "few channels", "depthwise", "grouped", "other")


def family(case: Conv2dCase) -> str:
    """The kind of layer, by its geometry alone; kernels are chosen by family, so that is how times are summed."""
    if case.g > 1:
        return "depthwise" if case.g == case.ic else "grouped"
    if case.ic < 8:
        return "few channels"  # stems and LeNet
    if case.kh == case.kw == 1:
        return "1x1"
    if (case.kh, case.kw, case.sh, case.sw, case.dh, case.dw) == (3, 3, 1, 1, 1, 1):
        return "3x3"
    return "other"


def seconds(row: Row, player: str) -> float | None:
    """The player's median, None where it has none or was wrong."""
    return row["players"].get(player, {}).get("median")


def speedup(row: Row, over: str = "torch", ours: str = "pyconv") -> float | None:
    """The other's time over ours: above 1, we are faster."""
    our_time, their_time = seconds(row, ours), seconds(row, over)
    return their_time / our_time if our_time and their_time else None


def share_of_roof(row: Row) -> float | None:
    """The roofline bound over pyconv's time."""
    ours = seconds(row, "pyconv")
    return row["bound"] / ours if ours and "bound" in row else None


def wrong(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """Rows and players whose result is too far from float64."""
    return [(r, p) for r in rows for p, m in r["players"].items() if m.get("right") is False]


def failed(rows: Iterable[Row]) -> list[tuple[Row, str, str]]:
    """Rows and players that ended with an error, and that error."""
    return [(r, p, m["failed"]) for r in rows for p, m in r["players"].items() if "failed" in m]


def geometric_mean(ratios: Iterable[float]) -> float:
    logs = [math.log(r) for r in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Speed-ups of one of ours over another player, in one sentence's numbers."""

    ours: str
    over: str
    mean: float  # geometric
    least: float
    most: float
    rows: int
    losses: int

    def __str__(self) -> str:
        who = "" if self.ours == "pyconv" else f"{self.ours} "
        return (
            f"{who}x{self.mean:.2f} over {self.over} (x{self.least:.2f} to x{self.most:.2f}), "
            f"slower in {self.losses} of {self.rows}"
        )


def compare(rows: Iterable[Row], over: str = "torch", ours: str = "pyconv") -> Comparison | None:
    """None if no row has both times."""
    ratios = [s for s in (speedup(r, over, ours) for r in rows) if s]
    if not ratios:
        return None
    losses = sum(r < 1 for r in ratios)
    mean = geometric_mean(ratios)
    return Comparison(ours, over, mean, min(ratios), max(ratios), len(ratios), losses)


def others(rows: Iterable[Row]) -> list[str]:
    """Every player but ours that has a time, in order of appearance."""
    names = (p for r in rows for p, m in r["players"].items() if p not in OURS and "median" in m)
    return list(dict.fromkeys(names))


def mallocs(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(r["malloc"] for r in rows))


def by(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def worst(rows: Iterable[Row], over: str = "torch", below: float = 1) -> list[Row]:
    """Rows whose speed-up is below a bound, the slowest first."""
    ratios = [(speedup(r, over), i, r) for i, r in enumerate(rows)]
    return [r for s, _, r in sorted(t for t in ratios if t[0]) if s and s < below]


def over_best_layout(rows: Sequence[Row]) -> float:
    """Geometric mean of torch's time in its faster layout over pyconv's in its faster one."""
    ratios = []
    for group in by(rows, lambda r: (r["case"], r["pass"], r["malloc"])).values():
        times = [[t for r in group if (t := seconds(r, p))] for p in ("pyconv", "torch")]
        if all(times):
            ratios.append(min(times[1]) / min(times[0]))
    return geometric_mean(ratios)


def name_of(row: Row) -> str:
    """`r18.l1 NCHW fwd`, or `resnet18 NHWC train`, with its batch where that is not the network's own."""
    if "network" in row:
        batch = f", batch {row['batch']}" if row["batch"] else ""
        return f"{row['network']} {row['layout']} {row['mode']}{batch}"
    return f"{row['layer']} {row['layout']} {row['pass']}"


def text(rows: Sequence[Row]) -> str:
    """What a run prints at its end: means, then every loss by name."""
    lines = []
    for malloc, part in by(rows, lambda r: r["malloc"]).items():
        pairs = [(p, ours) for ours in OURS for p in others(part)]
        lines += [f"{malloc} malloc: {c}" for pair in pairs if (c := compare(part, *pair))]
        if "case" in part[0]:
            for (layout, direction), group in by(part, lambda r: (r["layout"], r["pass"])).items():
                if c := compare(group):
                    lines.append(f"  {layout} {direction}: {c}")
            if not math.isnan(best := over_best_layout(part)):
                lines.append(f"  torch's better layout over ours: x{best:.2f}")
            if shares := [s for r in part if (s := share_of_roof(r))]:
                low = sum(s < 0.4 for s in shares)
                lines.append(
                    f"  share of the roof: median {median(shares):.0%}, under 40 % in {low} rows"
                )
        lines += [
            f"  slower than torch: {name_of(r)} x{speedup(r):.2f} {r.get('kernel', '')}".rstrip()
            for r in worst(part)
        ]
    lines += [f"WRONG, not timed: {name_of(r)} {p}" for r, p in wrong(rows)]
    lines += [f"FAILED: {name_of(r)} {p}: {why}" for r, p, why in failed(rows)]
    return "\n".join(lines)
