"""Runs as Markdown: pure functions from what a run wrote to tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

from . import summary
from .machine import said_of
from .summary import FAMILIES, LAYOUTS, OURS, PASSES, Row

Record = dict[str, Any]
WORST = 10  # rows that the README names; docs/benchmarks.md has them all


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def title(run: Record) -> str:
    """`float32, 2 threads, batch 1`."""
    a = run["arguments"]
    threads = run["conditions"]["threads"]
    parts = [a["dtype"]] if "dtype" in a else []
    parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
    parts += [f"batch {a['batch']}"] if a.get("batch", "None") != "None" else []
    parts += ["cold caches"] if a.get("cold") == "True" else []
    parts += ["each player in its own process"] if a.get("peers", "[]") != "[]" else []
    parts += [a["passes"]] if a.get("passes", "None") not in ("None", "fwd") else []
    parts += ["GPU"] if a.get("device") == "cuda" else []
    return ", ".join(parts)


def ratio(row: Row | None, over: str = "torch", ours: str = "pyconv") -> str:
    """The speed-up with two decimals; "-" where there is none, "?" behind one that was not stable."""
    value = summary.speedup(row, over, ours) if row else None
    if not row or not value:
        return "-"
    stable = all(row["players"][p]["reliable"] for p in (ours, over))
    return f"{value:.2f}{'' if stable else '?'}"


def overview(runs: Sequence[Record]) -> str:
    """A line for every run and player it was compared with."""
    lines = []
    for run in runs:
        for ours, over in itertools.product(OURS, summary.others(run["rows"])):
            cells = [", ".join([title(run), *ours.split()[1:]]), over]
            for malloc in ("default", "tuned"):
                rows = [r for r in run["rows"] if r["malloc"] == malloc]
                c = summary.compare(rows, over, ours)
                cells += (
                    [f"{c.mean:.2f}", f"{c.losses} of {c.rows}", f"{c.least:.2f}"]
                    if c
                    else ["-"] * 3
                )
            if cells[2:] != ["-"] * 6:
                lines.append(cells)
    head = ["run", "over", "geometric mean", "slower in", "worst"]
    return table([*head, "tuned malloc", "slower in", "worst"], lines)


def families(run: Record) -> str:
    """Geometric means by kind of layer, direction and layout."""
    rows = _default(run)
    lines = []
    for name in FAMILIES:
        of_family = [r for r in rows if r["family"] == name]
        cells = [name, str(len({r["layer"] for r in of_family}))]
        for layout in LAYOUTS:
            for direction in PASSES:
                part = [r for r in of_family if (r["layout"], r["pass"]) == (layout, direction)]
                c = summary.compare(part)
                cells.append(f"{c.mean:.2f}" if c else "-")
        if of_family:
            lines.append(cells)
    heads = [f"{layout} {p}" for layout in ("NCHW", "channels_last") for p in PASSES]
    return table(["layers", "number", *heads], lines)


def worst(run: Record, number: int = WORST) -> str:
    """The rows that lose most to torch."""
    rows = summary.worst(_default(run), below=float("inf"))[:number]
    return table(
        ["slowest beside torch", "kernel", "speed-up"],
        [[summary.name_of(r), r["kernel"], ratio(r)] for r in rows],
    )


def roof(run: Record) -> str:
    """One sentence on the roofline."""
    shares = [s for r in _default(run) if (s := summary.share_of_roof(r))]
    low = sum(s < 0.4 for s in shares)
    return f"Share of the roofline: median {median(shares):.0%}, under 40 % in {low} of {len(shares)} rows."


def layers(run: Record, over: str = "torch", malloc: str = "default") -> str:
    """Every layer: forward / input gradient / weight gradient in both layouts, and the kernels."""
    rows = [r for r in run["rows"] if r["malloc"] == malloc]
    passes = list(dict.fromkeys(r["pass"] for r in rows))
    lines = []
    for layer, of_layer in summary.by(rows, lambda r: r["layer"]).items():
        cells = [layer]
        for layout in LAYOUTS:
            by_pass = {r["pass"]: r for r in of_layer if r["layout"] == layout}
            cells.append(" / ".join(ratio(by_pass.get(p), over) for p in passes))
        kernels = dict.fromkeys(r["kernel"] for r in of_layer if "kernel" in r)
        largest = max(
            (m["max_error"] for r in of_layer if (m := r["players"].get("pyconv", {}))), default=0
        )
        shares = [s for r in of_layer if (s := summary.share_of_roof(r))]
        roofs = f"{min(shares):.0%} to {max(shares):.0%}" if shares else "-"
        lines.append([*cells, f"{largest:.0e}", roofs, ", ".join(kernels)])
    return table(
        ["layer", "NCHW", "channels_last", "largest error", "share of the roof", "kernels"], lines
    )


def against_peers(run: Record, malloc: str = "default") -> str:
    """Every row: the milliseconds of every player, and ours against them."""
    rows = [r for r in run["rows"] if r["malloc"] == malloc]
    ours = [p for p in OURS if any(summary.seconds(r, p) for r in rows)]
    names = [*ours, *summary.others(rows)]
    lines = []
    for row in rows:
        cells = [summary.name_of(row)]
        for name in names:
            time = summary.seconds(row, name)
            speedups = [f"x{ratio(row, name, p)}" for p in ours if name not in OURS]
            cells.append(", ".join([f"{time * 1e3:.3f}", *speedups]) if time else "-")
        lines.append(cells)
    return table(["milliseconds", *names], lines)


def steps(run: Record, malloc: str = "default") -> str:
    """Networks: milliseconds of ours and the speed-up, for each kind of step."""
    rows = [r for r in run["rows"] if r["malloc"] == malloc]
    kinds = list(dict.fromkeys((r["mode"], r["batch"]) for r in rows))
    names = {"train": "training step", "infer": "inference"}
    heads = [names[mode] + (f", batch {batch}" if batch else "") for mode, batch in kinds]
    lines = []
    for (network, layout), group in summary.by(rows, lambda r: (r["network"], r["layout"])).items():
        cells = [network, layout]
        for kind in kinds:
            row = next((r for r in group if (r["mode"], r["batch"]) == kind), None)
            times = {p: t for p in OURS if row and (t := summary.seconds(row, p))}
            texts = [
                f"{p.removeprefix('pyconv')} {t * 1e3:.2f} ms, x{ratio(row, ours=p)}"
                for p, t in times.items()
            ]
            cells.append(";".join(texts).strip() or "-")
        lines.append(cells)
    return table(["network", "layout", *heads], lines)


def losses(run: Record) -> str:
    """Every row under 1, in words."""
    found = [
        f"- {summary.name_of(r)}, {malloc} malloc: {ratio(r)}"
        + (f" ({r['kernel']})" if "kernel" in r else "")
        for malloc, rows in summary.by(run["rows"], lambda r: r["malloc"]).items()
        for r in summary.worst(rows)
    ]
    found += [
        f"- {summary.name_of(r)}: {p} is wrong, not timed" for r, p in summary.wrong(run["rows"])
    ]
    found += [
        f"- {summary.name_of(r)}: {p} failed, {why}" for r, p, why in summary.failed(run["rows"])
    ]
    return "\n".join(found) or "None."


def sizes(run: Record) -> str:
    """Many input sizes, once each."""
    lines = []
    for row in run["rows"]:
        ours, theirs = row["players"]["pyconv"], row["players"]["torch"]
        lines.append(
            [
                row["what"],
                str(row["sizes"]),
                *(f"{1e3 * t:.0f} ms" for t in (ours["first"], theirs["first"])),
                f"{theirs['first'] / ours['first']:.2f}",
                *(
                    f"{p['first'] / p['again']:.2f}" if "again" in p else "-"
                    for p in (ours, theirs)
                ),
            ]
        )
    head = ["", "sizes", "pyconv", "torch", "speed-up", "first call / second: pyconv", "torch"]
    return table(head, lines)


def memory(run: Record) -> str:
    """Peak memory of a call beyond its operands and its result."""
    names = list(dict.fromkeys(name for row in run["rows"] for name in row["players"]))
    lines = []
    for row in run["rows"]:
        extra = {name: f"{m['extra'] / 2**20:.1f}" for name, m in row["players"].items()}
        cells = [extra.get(name, "-") for name in names]
        lines.append([summary.name_of(row), row["kernel"], f"{row['result'] / 2**20:.1f}", *cells])
    return table(["MB", "chosen", "result", *names], lines)


def gpu(runs: Sequence[Record]) -> str:
    """Our kernels beside cuDNN's, under each of its switches."""
    lines = []
    for run in runs:
        for over in summary.others(run["rows"]):
            tf32 = run["arguments"].get("tf32") == "True"
            cells = ["TF32" if tf32 else run["arguments"]["dtype"], over]
            for layout in LAYOUTS:
                rows = [r for r in run["rows"] if r["layout"] == layout]
                c = summary.compare(rows, over)
                cells += (
                    [f"{c.mean:.2f}", f"{c.losses} of {c.rows}", f"{c.least:.2f}"]
                    if c
                    else ["-"] * 3
                )
            lines.append(cells)
    heads = [
        f"{layout} {what}"
        for layout in ("NCHW", "channels_last")
        for what in ("mean", "slower in", "worst")
    ]
    on = runs[0]["conditions"]
    said = f"{', '.join(on['gpus'])}, torch {on['torch']}, {on['date'][:10]}, commit {on['commit']}"
    return (
        f"cuDNN's time over ours on a GPU, above 1 is faster, all three directions ({said}):\n\n"
        + table(["dtype", "over", *heads], lines)
    )


def _default(run: Record) -> list[Row]:
    """The rows under the first malloc of the run."""
    return [r for r in run["rows"] if r["malloc"] == run["rows"][0]["malloc"]]


def readme(runs: Sequence[Record]) -> dict[str, str]:
    """The README's tables by marker."""
    found = {}
    convolutions = [r for r in runs if r["benchmark"] == "conv2d" and summary.compare(r["rows"])]
    if convolutions:
        main = convolutions[0]
        text = [
            "torch's time over ours, above 1 is faster, for the layers of `benchmarks/conv2d.txt` (every row: "
            "`docs/benchmarks.md`):",
            overview(convolutions),
            f"By kind of layer, {title(main)}:",
            families(main),
            worst(main),
            f"{roof(main)} {said_of(main['conditions'])}",
        ]
        found["conv2d"] = "\n\n".join(text)
    on_gpu = [r for r in runs if r["arguments"].get("device") == "cuda"]
    if on_gpu:
        found["gpu"] = gpu(on_gpu)
    of_steps = [r for r in runs if r["benchmark"] == "steps"]
    if of_steps:
        found["steps"] = f"{steps(of_steps[0])}\n\n{said_of(of_steps[0]['conditions'])}"
    return found


def document(runs: Sequence[Record]) -> str:
    """docs/benchmarks.md: every row of every run."""
    parts = [
        "# Benchmarks, every row",
        "Written by `python -m benchmarks report` from the last runs; how they are made is in "
        "`benchmarks/README.md`. A number is torch's (or another's) time over ours, above 1 is faster; three of them "
        "are forward / input gradient / weight gradient; `?` marks a spread above a tenth of the median. Behind a "
        "time in milliseconds stand the speed-ups of each of ours over it, in the order of the columns.",
    ]
    for run in runs:
        kind = run["benchmark"]
        parts += [f"## {kind}: {title(run)}", said_of(run["conditions"])]
        if kind in ("sizes", "memory"):
            parts.append({"sizes": sizes, "memory": memory}[kind](run))
            continue
        for malloc in summary.mallocs(run["rows"]):
            parts.append(f"### {malloc} malloc")
            if (
                run["arguments"].get("peers", "[]") != "[]"
                or run["arguments"].get("device") == "cuda"
            ):
                parts.append(against_peers(run, malloc))
            elif kind == "steps":
                parts.append(steps(run, malloc))
            else:
                for over in summary.others(run["rows"]):
                    parts += [f"Over {over}:", layers(run, over, malloc)]
        parts += ["### Slower than torch", losses(run)]
    return "\n\n".join(parts) + "\n"
