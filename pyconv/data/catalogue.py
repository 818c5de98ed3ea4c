"""What is known of each data set: its files, their checksums, and where they can be fetched."""

from __future__ import annotations

from dataclasses import dataclass

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        torchvision: the folder torchvision keeps it in, under its own root.
        url: folder of the four gzipped files on the web, ending in a slash.
        md5: MD5 of each gzipped file.
    """

    torchvision: str
    url: str
    md5: dict[str, str]


CATALOGUE = {
    # LeCun, Cortes, Burges, 1998; CC BY-SA 3.0.
    "mnist": Entry(
        torchvision="MNIST/raw",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        md5={
            TRAIN_IMAGES: "f68b3c2dcbeaaa9fbdd348bbdeb89873",
            TRAIN_LABELS: "d53e105ee54ea40749a09fcbcd1e9432",
            TEST_IMAGES: "9fb629c4189551a2d022fa330f9573f3",
            TEST_LABELS: "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    # Xiao, Rasul, Vollgraf, "Fashion-MNIST", arXiv:1708.07747, 2017; MIT.
    "fashion-mnist": Entry(
        torchvision="FashionMNIST/raw",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5={
            TRAIN_IMAGES: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            TRAIN_LABELS: "25c81989df183df01b3e8a0aad5dffbe",
            TEST_IMAGES: "bef4ecab320f06d8554ea6380940ec79",
            TEST_LABELS: "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}
