"""Real images to train on: MNIST and Fashion-MNIST, embedded, from a folder, or downloaded.

    digits = pyconv.data.load("mnist")               # 10,000 / 2,000 images, no network
    digits = pyconv.data.load("mnist", root="data")  # the full files

`names` lists the data sets.
"""

from .datasets import NUM_CLASSES, Dataset, Split, load, names
from .fetch import cache_folder, download
from .idx import IMAGES, LABELS, DataError, read_idx, write_idx

__all__ = [
    "IMAGES",
    "LABELS",
    "NUM_CLASSES",
    "DataError",
    "Dataset",
    "Split",
    "cache_folder",
    "download",
    "load",
    "names",
    "read_idx",
    "write_idx",
]
