"""Instructions of every kernel on tiny layers, counted by callgrind and compared with instructions.txt.

Seconds differ from machine to machine, counts do not, and a kernel that lost its vectors or its blocking has many more
of them. AVX2, because valgrind knows no AVX-512. Counts belong to one version of the compiler: with another there is
nothing to compare. No layout may need three times the instructions of the other.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pyconv._conv_string import conv2d

RECORDED = Path(__file__).parent / "instructions.txt"
# Small enough to count all in seconds, large enough that the arithmetic outweighs the call.
LAYERS = {
    "dense": "ic16ih14oc16kh3ph1",
    "strided": "ic8ih15oc16kh3sh2ph1",
    "pointwise": "ic32ih14oc32kh1",
    "stem": "ic3ih32oc16kh5sh2ph2",
    "depthwise": "g16ic16ih14oc16kh3ph1",
    "grouped": "g4ic16ih14oc16kh3ph1",
}
LAYOUT_RATIO = 3.0
Counts = dict[
    str, int
]  # "layer layout pass algorithm", and " chosen" behind the list's choice: instructions


def count(program: Path) -> tuple[str, Counts]:
    """The version of the compiler that built the program, and what callgrind counted."""
    fields = ("mb", "g", "ic", "ih", "iw", "oc", "kh", "kw", "sh", "sw", "ph", "pw", "dh", "dw")
    lines = []
    for name, text in LAYERS.items():
        case = conv2d(text)
        lines.append(" ".join([name, *(str(getattr(case, field)) for field in fields)]))
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--collect-atstart=no",
                "--toggle-collect=counted",
                "--dump-after=counted",
                f"--callgrind-out-file={folder}/counts",
                str(program),
            ],
            input="\n".join(lines) + "\n",
            env={**os.environ, "PYCONV_ISA": "avx2"},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise SystemExit(f"instructions: valgrind ended with {run.returncode}:\n{run.stderr}")
        compiler, *calls = run.stdout.splitlines()
        totals = [_total(Path(f"{folder}/counts.{i}")) for i in range(1, len(calls) + 1)]
    return compiler.removeprefix("compiler "), dict(zip(calls, totals))


def _total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.M)
    if not found:
        raise SystemExit(f"instructions: {dump} has no totals")
    return int(found[1])


def read(text: str) -> tuple[str, Counts]:
    """instructions.txt: the compiler, and the counts."""
    compiler, counts = "", {}
    for line in text.splitlines():
        if line.startswith("compiler "):
            compiler = line.removeprefix("compiler ")
        elif line and not line.startswith("#"):
            call, number = line.rsplit(maxsplit=1)
            counts[" ".join(call.split())] = int(number)
    return compiler, counts


def written(compiler: str, counts: Counts) -> str:
    """instructions.txt; `read` undoes it."""
    head = [
        "# Instructions of one call, float32, AVX2, one thread, as callgrind counts them.",
        "# layer, layout, pass, algorithm (chosen: by the list), count. Written by: make instructions RECORD=1",
        f"compiler {compiler}",
    ]
    lines = []
    for call, number in counts.items():
        layer, layout, direction, algorithm, *chosen = call.split()
        who = " ".join([algorithm, *chosen])
        lines.append(f"{layer:<10} {layout:<13} {direction:<10} {who:<30} {number:>9}")
    return "\n".join([*head, *lines]) + "\n"


def _plain(call: str) -> str:
    return call.removesuffix(" chosen")


def slow_layouts(counts: Counts) -> list[str]:
    """Layers whose chosen kernel needs far more instructions in one layout than in the other, a sentence each."""
    found: dict[tuple[str, str], list[int]] = {}
    for call, number in counts.items():
        if call.endswith(" chosen"):
            layer, _, direction, *_ = call.split()
            found.setdefault((layer, direction), []).append(number)
    return [
        f"{layer} {direction}: {max(by_layout)} instructions in one layout, {min(by_layout)} in the other"
        for (layer, direction), by_layout in found.items()
        if max(by_layout) > LAYOUT_RATIO * min(by_layout)
    ]


def compare(recorded: Counts, counted: Counts, tolerance: float) -> tuple[list[str], list[str]]:
    """(what fails, what should be recorded anew), a sentence each."""
    fails, notes = slow_layouts(counted), []
    recorded = {_plain(call): number for call, number in recorded.items()}
    counted = {_plain(call): number for call, number in counted.items()}
    for call, number in counted.items():
        if call not in recorded:
            fails.append(f"{call}: {number} instructions, and none recorded")
            continue
        change = number / recorded[call] - 1
        sentence = f"{call}: {number} instructions, {change:+.1%} of the recorded {recorded[call]}"
        if change > tolerance:
            fails.append(sentence)
        elif change < -tolerance:
            notes.append(sentence)
    notes += [f"{call}: recorded, but no longer there" for call in recorded if call not in counted]
    return fails, notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    a = parser.add_argument
    a("program", type=Path, help="what CMake built of instructions.cpp")
    a("--record", action="store_true", help="write the counts down instead of comparing")
    a("--tolerance", type=float, default=0.03, help="share of the recorded count (0.03)")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    if not shutil.which("valgrind"):
        print("skipped: instruction counts (need valgrind)")
        return 0
    compiler, counted = count(args.program)
    if args.record:
        RECORDED.write_text(written(compiler, counted))
        print(f"{RECORDED.name}: {len(counted)} counts")
        return 0
    recorded_with, recorded = read(RECORDED.read_text())
    if compiler != recorded_with:
        print(
            f"skipped: instruction counts ({recorded_with} made them, this compiler is {compiler})"
        )
        return 0
    fails, notes = compare(recorded, counted, args.tolerance)
    for sentence in notes:
        print(f"record again (make instructions RECORD=1): {sentence}")
    for sentence in fails:
        sys.stderr.write(f"{sentence}\n")
    print(
        f"{len(counted)} instruction counts, {len(fails)} above the recorded by {args.tolerance:.0%}"
    )
    return 1 if fails else 0
