"""``python -m pyconv demo``: LeNet-5 on our layers beside the same model on torch's.

Both start from the same weights and see the same batches in the same order, so the losses agree as
far as rounding lets them. Their epochs alternate, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse

import torch

from pyconv import _native, data

from .run import Run
from .settings import Settings, UsageError, resolve

# Sigmoid LeNet-5 learns slowly; on 10,000 images these take it to about 0.8 in five epochs
# (0.790 measured with torch.nn, seed 0), where batches of 256 and 0.001 are still at chance.
SETTINGS: Settings = {"model": "lenet5", "data": "fashion-mnist", "batch_size": 32, "lr": 3e-3}
HEADER = """\
            loss           test accuracy        seconds
epoch   pyconv   torch    pyconv   torch    pyconv   torch"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``demo``."""
    parser.description = (
        "Train LeNet-5 on the embedded Fashion-MNIST, on our layers and on torch's, side by side."
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Train both and print the table; return the exit code.

    Raises:
        UsageError: a flag is impossible, or the compiled extension is missing.
    """
    if _native.lib is None:
        raise UsageError(f"the demo times our kernels, which are missing: {_native.reason}")
    images = data.load(SETTINGS["data"])
    ours, twin = (
        Run(
            resolve({**SETTINGS, "epochs": args.epochs, "seed": args.seed, "layers": layers}),
            images,
            torch.device("cpu"),
        )
        for layers in ("pyconv", "torch")
    )
    parameters = sum(p.numel() for p in ours.module.parameters())
    print(
        f"LeNet-5 ({parameters:,} parameters) on {images.name}, {len(images.train.labels):,} "
        f"images, batch {SETTINGS['batch_size']}, {torch.get_num_threads()} thread(s), "
        f"instruction set {_native.lib.isa()}\n\n{HEADER}"
    )
    while not ours.finished():
        a, b = ours.train_epoch(), twin.train_epoch()
        print(
            f"{a['epoch']:>5}"
            f"{a['loss']:>9.4f}{b['loss']:>8.4f}"
            f"{a['test_accuracy']:>10.4f}{b['test_accuracy']:>8.4f}"
            f"{a['seconds']:>10.2f}{b['seconds']:>8.2f}",
            flush=True,
        )
    ratio = sum(r["seconds"] for r in twin.history) / sum(r["seconds"] for r in ours.history)
    print(f"\npyconv trains at {ratio:.2f} times torch's speed here.")
    return 0
