"""What the checking emulator saw: mistakes, and the memory traffic of every source line."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One mistake of a kernel, however often it was made.

    kind is "race", "out of bounds", "uninitialised" or "input written"; line is file:line of the
    access that shows it, other_line that of the access it races with, or "".
    """

    kind: str
    line: str
    other_line: str
    words: str
    times: int

    def __str__(self) -> str:
        also = f" (the other access is at {self.other_line})" if self.other_line else ""
        return f"{self.line}: {self.kind}, {self.times} times: {self.words}{also}"


@dataclass(frozen=True)
class Traffic:
    """What one source line asked of one memory.

    A request is what the lanes of a warp ask at once. Its cost is counted in 32-byte sectors of
    global memory, or in passes over the banks of shared memory; `least` is the cost had the same
    bytes been neighbours, or in different banks.
    """

    line: str
    memory: str  # "global" or "shared"
    access: str  # "read" or "write"
    bytes: int  # of one lane
    requests: int
    lanes: int
    cost: int
    least: int

    @property
    def excess(self) -> float:
        """cost / least: 1 is coalesced, or free of bank conflicts."""
        return self.cost / self.least


@dataclass
class Report:
    """Filled when the block of `pyconv.cuda_emulator(check=True)` ends; print it, or read its fields."""

    errors: list[Finding] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [str(error) for error in self.errors] or ["no errors"]
        if self.traffic:
            width = max(len(t.line) for t in self.traffic)
            lines += [
                "",
                f"{'line':<{width}}  memory  access  bytes  requests     cost    least  excess",
            ]
            lines += [
                f"{t.line:<{width}}  {t.memory:<6}  {t.access:<6}  {t.bytes:5}  {t.requests:8}"
                f" {t.cost:8} {t.least:8}  {t.excess:6.2f}"
                for t in self.traffic
            ]
        return "\n".join(lines)

    def read(self, library: ctypes.CDLL, path: Path) -> None:
        """Takes over what the library has noted."""
        for name in ("pyconv_emulator_findings", "pyconv_emulator_traffic"):
            getattr(library, name).restype = ctypes.c_char_p
        findings = [
            text.split("\t") for text in library.pyconv_emulator_findings().decode().splitlines()
        ]
        rows = [
            tuple(map(int, text.split()))
            for text in library.pyconv_emulator_traffic().decode().splitlines()
        ]
        sites = {int(s) for _, *both, _, _ in findings for s in both} | {row[0] for row in rows}
        line_of = source_lines(path, sorted(sites - {0}))
        self.errors += [
            Finding(kind, line_of[int(site)], line_of.get(int(other), ""), words, int(times))
            for kind, site, other, words, times in findings
        ]
        sums: dict[tuple, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for site, shared, writes, size, *counts in rows:
            memory, access = ("global", "shared")[shared], ("read", "write")[writes]
            key = (line_of[site], memory, access, size)
            sums[key] = [a + b for a, b in zip(sums[key], counts, strict=True)]
        self.traffic += [Traffic(*key, *counts) for key, counts in sorted(sums.items())]


_known: dict[Path, dict[int, str]] = {}


def source_lines(path: Path, sites: list[int]) -> dict[int, str]:
    """file:line of each address in the shared object: of the kernel, not of the vocabulary inlined there."""
    known = _known.setdefault(path, {})
    unknown = [site for site in sites if site not in known]
    if unknown:
        known.update(_ask_addr2line(path, unknown))
    return known


def _ask_addr2line(path: Path, sites: list[int]) -> dict[int, str]:
    if shutil.which("addr2line") is None:
        return {site: f"{site:#x}" for site in sites}
    # One less: the address is where the call before the access returns to. -a prints it before its lines.
    command = ["addr2line", "-a", "-i", "-e", str(path), *(f"{site - 1:#x}" for site in sites)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places: dict[int, str] = {}
    site = 0
    for text in output.splitlines():
        if text.startswith("0x"):
            site = int(text, 16) + 1
            continue
        line = text.split(" (")[0]
        vocabulary = any(f in line for f in ("/emulator/", "/csrc/common/", "/include/", "??"))
        if site not in places or (places[site].startswith("?") and not vocabulary):
            places[site] = "?" + line if vocabulary else _short(line)
    return {site: _short(place.lstrip("?")) for site, place in places.items()}


def _short(line: str) -> str:
    """csrc/cuda/conv2d/implicit_gemm.cu:150, or the file's own name outside csrc."""
    _, found, tail = line.rpartition("csrc/")
    return found + tail if found else Path(line).name
