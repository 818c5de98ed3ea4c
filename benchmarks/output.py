"""A run's files: JSON with everything, CSV with a line per row and player, PNG of speed-ups and of the roofline."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from . import summary
from .machine import said_of

RESULTS = Path("benchmarks/results")


def write(folder: Path, name: str, record: dict[str, Any]) -> list[Path]:
    """Writes the files; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.csv"]
    paths[0].write_text(json.dumps(record, indent=1) + "\n")
    _write_csv(paths[1], record["rows"])
    if not any("malloc" in row for row in record["rows"]):
        return paths
    if importlib.util.find_spec("matplotlib") is None:
        sys.stdout.write("No charts: matplotlib is not installed (pip install .[bench])\n")
        return paths
    return paths + _draw(folder / name, record)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [
        {**{k: v for k, v in row.items() if k != "players"}, "player": player, **measured}
        for row in rows
        for player, measured in row["players"].items()
    ]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)))
        table.writeheader()
        table.writerows(lines)


def _draw(stem: Path, record: dict[str, Any]) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    rows = [r for r in record["rows"] if r["malloc"] == record["rows"][0]["malloc"]]
    timed = [r for r in rows if summary.speedup(r)]
    paths = []
    if timed:
        paths.append(_bars(stem, timed, said_of(record["conditions"])))
    if any("flops" in r for r in timed):
        paths.append(_roofline(stem, timed, record["conditions"]))
    return paths


def _bars(stem: Path, rows: list[dict[str, Any]], caption: str) -> Path:
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda r: summary.speedup(r) or 0)
    ratios = [summary.speedup(r) or 0 for r in rows]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.13 * len(rows)), layout="constrained")
    colours = ["tab:green" if r >= 1 else "tab:red" for r in ratios]
    axes.barh(range(len(rows)), [r - 1 for r in ratios], left=1, color=colours)
    axes.set_yticks(range(len(rows)), [summary.name_of(r) for r in rows], fontsize=5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.4)
    axes.set_xlabel(f"torch's time / pyconv's, malloc {rows[0]['malloc']}")
    axes.set_title(caption, fontsize=6, wrap=True)
    path = stem.with_name(f"{stem.name}-speedup.png")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _roofline(stem: Path, rows: list[dict[str, Any]], conditions: dict[str, Any]) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for player, marker in (("torch", "x"), ("pyconv", "o")):
        for number, name in enumerate(summary.FAMILIES):
            part = [r for r in rows if r["family"] == name and summary.seconds(r, player)]
            axes.scatter(
                [r["flops"] / r["bytes"] for r in part],
                [r["flops"] / (summary.seconds(r, player) or 1) / 1e9 for r in part],
                marker=marker,
                color=f"C{number}",
                s=14,
                alpha=1 if player == "pyconv" else 0.4,
                label=name if player == "pyconv" and part else None,
            )
    low, high = axes.get_xlim()
    peak, bandwidth = conditions["flops"] / 1e9, conditions["copy_bytes_per_second"] / 1e9
    ridge = peak / bandwidth
    axes.plot(
        [max(low, 0.1), ridge, max(high, ridge)], [max(low, 0.1) * bandwidth, peak, peak], "k-"
    )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per compulsory byte", ylabel="GFLOP/s")
    axes.set_title(
        f"o pyconv, x torch; roof {peak:.0f} GFLOP/s, {bandwidth:.0f} GB/s. Operations are the formula's:\n"
        "Winograd does fewer, and what lies in a cache moves faster, so both may pass the roof",
        fontsize=8,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    path = stem.with_name(f"{stem.name}-roofline.png")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
