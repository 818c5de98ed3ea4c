"""Three kernels to read, break and mend: their files, what to see in each, and the runs that show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pyconv import ops
from pyconv.lab._kernel import Result, kernel

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Exercise:
    """A .cu file in this folder, and steps: words about a run, and the run."""

    file: str
    title: str
    words: str
    steps: list[tuple[str, Callable[[], Result]]]

    def text(self) -> str:
        """As Markdown: the words, the file, and each step with its report."""
        lines = [f"## {self.title}", "", self.words, ""]
        lines += [
            f"`pyconv/lab/{self.file}`:",
            "",
            "```c++",
            (FOLDER / self.file).read_text() + "```",
        ]
        for words, run in self.steps:
            lines += ["", words, "", "```text", str(run()), "```"]
        return "\n".join(lines) + "\n"


def convolution(name: str, last: int, grid: tuple[int, ...], block: tuple[int, ...]) -> Result:
    """Of 4 channels of 34 x 34 with 8 filters of 3 x 3; `last` is the kernel's last argument."""
    torch.manual_seed(0)
    x, w, y = torch.randn(4, 34, 34), torch.randn(8, 4, 3, 3), torch.empty(8, 32, 32)
    right = ops.conv2d(x.double(), w.double())
    run = kernel(FOLDER / f"{name}.cu")
    return run.check(x, w, y, 4, 34, 34, last, grid=grid, block=block, expected=right)


def to_channels_last(
    name: str, *last: int, grid: tuple[int, ...], block: tuple[int, ...]
) -> Result:
    """Of 64 channels of 96 pixels."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 96), torch.empty(96, 64)
    run = kernel(FOLDER / "coalescing.cu", name)
    return run.check(x, y, 64, 96, *last, grid=grid, block=block, expected=x.t())


EXERCISES = [
    Exercise(
        "naive.cu",
        "A convolution, one thread for each output",
        "The formula, and nothing else: where to begin, and what to judge the rest by.",
        [
            (
                "Neighbouring threads have neighbouring `ow`: a warp reads 32 neighbours of `x`, mostly not from a\n"
                "sector's start, which costs a fifth sector; one value of `w`; and writes 32 neighbours of `y`. No\n"
                "line has far more than its least. But `x` is requested as often as there are products.",
                lambda: convolution("naive", 3, (1, 8, 8), (32, 4)),
            ),
            (
                "What to try: a `block` of `(4, 32)`, whose warps are 4 outputs wide. Which line suffers?",
                lambda: convolution("naive", 3, (8, 1, 8), (4, 32)),
            ),
        ],
    ),
    Exercise(
        "tiled.cu",
        "Shared memory, and a race",
        "A block's threads share what they read. The last argument says whether a barrier stands at the end of the\n"
        "loop: without it, a fast thread overwrites what a slow one has yet to read.",
        [
            (
                "Without it. The values depend on the order in which threads run, as on a GPU they would from run\n"
                "to run; the two lines that race are named, whichever order shows it.",
                lambda: convolution("tiled", 0, (2, 2, 8), (16, 16)),
            ),
            (
                "With it. Of the naive kernel's 9216 requests for `x`, 1408 are left. Reading the tile takes twice\n"
                "the passes it could: a warp is two rows of 16 outputs, whose pixels lie 18 apart, two of them in\n"
                "the banks of two others.",
                lambda: convolution("tiled", 1, (2, 2, 8), (16, 16)),
            ),
        ],
    ),
    Exercise(
        "coalescing.cu",
        "Coalescing, and bank conflicts",
        "A change of layout computes nothing; all it costs is memory. Either its reads or its writes have their\n"
        "threads far apart, unless a tile is turned around in shared memory.",
        [
            (
                "Directly: each of a warp's 32 reads is a sector of its own, of which 4 bytes in 32 are used.",
                lambda: to_channels_last("direct", grid=(24,), block=(256,)),
            ),
            (
                "Through a tile with rows 32 apart: global memory has what it wants, but a column of the tile lies in\n"
                "one bank, and is read in 32 passes.",
                lambda: to_channels_last("turned", 32, grid=(3, 2), block=(32, 8)),
            ),
            (
                "With rows 33 apart each value of a column is in another bank, and nothing is left to gain.",
                lambda: to_channels_last("turned", 33, grid=(3, 2), block=(32, 8)),
            ),
        ],
    ),
]
