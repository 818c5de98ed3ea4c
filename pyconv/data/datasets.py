"""From four IDX files to tensors in memory."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .catalogue import CATALOGUE, FILES
from .fetch import cache_folder, download
from .idx import IMAGES, LABELS, DataError, read_idx

NUM_CLASSES = 10
SIZE = 28  # pixels per side


class Split(NamedTuple):
    """Images (N, 1, 28, 28), float32, and labels (N,), int64."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A training and a test set.

    Attributes:
        name: as in `names()`.
        origin: where it came from, for people.
        fingerprint: CRC-32 of the pixels and labels as loaded; a resumed run compares it.
    """

    name: str
    origin: str
    num_classes: int
    train: Split
    test: Split
    fingerprint: int


def names() -> list[str]:
    """Return the data sets `load` knows."""
    return list(CATALOGUE)


def load(
    name: str,
    root: str | Path | None = None,
    fetch: bool = False,
    classes: Sequence[int] | None = None,
    normalize: bool = False,
) -> Dataset:
    """Load a data set; by default the embedded, class-balanced 10,000 / 2,000 subset.

    Args:
        name: one of `names()`.
        root: a folder of the four IDX files, plain or gzipped: ROOT/NAME/*, torchvision's layout
            (ROOT/MNIST/raw/*), or ROOT/* itself, looked for in this order.
        fetch: download the canonical files first, to ROOT/NAME, or to the cache without ``root``.
        classes: keep only these labels and renumber them 0, 1, ... in this order.
        normalize: subtract the mean and divide by the standard deviation of the training pixels;
            else pixels are in [0, 1].

    Raises:
        DataError: a file is missing or is not what its name says; a class is not in the data.
    """
    if name not in CATALOGUE:
        raise DataError(f"no data set is called {name!r}: choose from {', '.join(CATALOGUE)}")
    if fetch:
        folder = (cache_folder() if root is None else Path(root)) / name
        download(name, folder)
        origin = str(folder)
    elif root is not None:
        folder = find_folder(name, Path(root))
        origin = str(folder)
    else:
        folder = Path(__file__).parent / name
        origin = "embedded subset"
    splits = [read_split(folder, *FILES[:2]), read_split(folder, *FILES[2:])]
    if classes is not None:
        splits = [_select(split, classes, name) for split in splits]

    fingerprint = 0
    for tensor in (*splits[0], *splits[1]):
        fingerprint = zlib.crc32(tensor.numpy().data, fingerprint)
    pixels = [split.images.unsqueeze(1).float().div_(255) for split in splits]  # (N, 1, 28, 28)
    if normalize:
        std, mean = torch.std_mean(pixels[0])
        pixels = [images.sub_(mean).div_(std) for images in pixels]
    train, test = (
        Split(images, split.labels.long()) for images, split in zip(pixels, splits, strict=True)
    )
    num_classes = NUM_CLASSES if classes is None else len(classes)
    return Dataset(name, origin, num_classes, train, test, fingerprint)


def _spellings(stem: str) -> list[str]:
    """The names a file goes by: the canonical one, and "...-images.idx3-ubyte" of old archives."""
    dotted = stem.replace("-idx", ".idx")
    return [stem, f"{stem}.gz", dotted, f"{dotted}.gz"]


def find_folder(name: str, root: Path) -> Path:
    """Return the first folder of the layouts of `load` that holds any of the files."""
    folders = [root / name, root / CATALOGUE[name].torchvision, root]
    for folder in folders:
        if any((folder / spelling).exists() for stem in FILES for spelling in _spellings(stem)):
            return folder
    raise DataError(
        f"{root}: no IDX file of {name} there: expected {FILES[0]} and three more, plain or "
        f"gzipped, in {folders[0]}, {folders[1]} or {root} itself"
    )


def _path(folder: Path, stem: str) -> Path:
    found = [folder / s for s in _spellings(stem) if (folder / s).exists()]
    if not found:
        raise DataError(f"{folder / stem}: no such file, plain or gzipped")
    return found[0]


def read_split(folder: Path, images_stem: str, labels_stem: str) -> Split:
    """Read images (N, 28, 28) and labels (N,), both uint8, and check that they belong together."""
    images_path, labels_path = _path(folder, images_stem), _path(folder, labels_stem)
    images = read_idx(images_path, IMAGES)
    labels = read_idx(labels_path, LABELS)
    if images.shape[1:] != (SIZE, SIZE):
        height, width = images.shape[1:]
        raise DataError(f"{images_path}: images are {height}x{width}, expected {SIZE}x{SIZE}")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels):,} labels, expected {len(images):,}, one for each image "
            f"of {images_path.name}"
        )
    if len(labels) == 0:
        raise DataError(f"{labels_path}: no labels, expected at least one")
    if labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{labels_path}: holds the label {labels.max().item()}, expected 0 to {NUM_CLASSES - 1}"
        )
    return Split(images, labels)


def _select(split: Split, classes: Sequence[int], name: str) -> Split:
    """Keep the images of ``classes`` and renumber their labels by position in it."""
    renumber = torch.full((NUM_CLASSES,), 255, dtype=torch.uint8)
    for new, old in enumerate(classes):
        if not (split.labels == old).any():
            raise DataError(f"{name}: has no image of class {old}")
        renumber[old] = new
    labels = renumber[split.labels.long()]
    keep = labels != 255
    return Split(split.images[keep], labels[keep])
