"""Makes the embedded subsets from the full files: ``python -m pyconv.data.subset --root ROOT``.

Class-balanced, and without chance. The training subset takes the first images of each class, so
that its early images have the numbers they have in the full file (the course looks at image 12).
The test subset spaces its choice evenly over the file, whose first half, in MNIST, is known to be
easier than its second. Both keep the order of the file, which is shuffled.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from .catalogue import CATALOGUE, FILES
from .datasets import NUM_CLASSES, Split, find_folder, read_split
from .idx import DataError, write_idx

TRAIN_PER_CLASS = 1000
TEST_PER_CLASS = 200


def balanced(labels: Tensor, per_class: int, spread: bool) -> Tensor:
    """Return the sorted indices of ``per_class`` images of each class: the first, or spread evenly.

    Raises:
        DataError: a class has too few images.
    """
    chosen = []
    for label in range(NUM_CLASSES):
        where = (labels == label).nonzero().flatten()  # (count,), ascending
        if len(where) < per_class:
            raise DataError(f"class {label} has {len(where)} images, expected {per_class} or more")
        ranks = torch.arange(per_class)
        chosen.append(where[ranks * len(where) // per_class if spread else ranks])
    return torch.cat(chosen).sort().values


def write_subset(name: str, root: Path, output: Path) -> None:
    """Write the four gzipped IDX files of the subset of ``name`` to ``output``/``name``."""
    source, target = find_folder(name, root), output / name
    target.mkdir(parents=True, exist_ok=True)
    for files, per_class, spread in (
        (FILES[:2], TRAIN_PER_CLASS, False),
        (FILES[2:], TEST_PER_CLASS, True),
    ):
        split = read_split(source, *files)
        keep = balanced(split.labels, per_class, spread)
        for stem, values in zip(files, Split(split.images[keep], split.labels[keep]), strict=True):
            write_idx(target / f"{stem}.gz", values)
            print(f"{target / stem}.gz: {len(values):,} of {len(split.labels):,}")


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pyconv.data.subset", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the full data sets")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    try:
        for name in CATALOGUE:
            write_subset(name, args.root, args.output)
    except DataError as error:
        print(f"pyconv.data.subset: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
