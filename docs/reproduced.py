"""Runs the course's experiments in full, on pyconv's layers and on torch's, and writes docs/reproduced.md.

    python docs/reproduced.py FOLDER         # with mnist and fashion-mnist in it; for some minutes
    python docs/reproduced.py FOLDER lenet   # one recipe

Each run that ends is kept in build/reproduced, and made again only if its file is deleted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pyconv import data, train
from pyconv.train.settings import RECIPES

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
COURSE = {  # chapter 13 of Deep Learning for Coders; its LeNet-5 is another's, Dive into Deep Learning's
    "chapter-3v7": ("three or seven, two epochs", "99.0%"),
    "chapter-constant": ("ten digits, a constant rate of 0.06, batches of 64", "11.35%"),
    "chapter-one-cycle": ("one cycle, batches of 512", "97.4%"),
    "chapter-batch-norm": ("and batch norm", "98.6%"),
    "chapter-five-epochs": ("and five epochs, rate 0.1", "99.1%"),
    "lenet": ("LeNet-5 on Fashion-MNIST, five epochs", ""),
}


def history(recipe: str, layers: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of every epoch of a run, made now or before."""
    kept = ROOT / f"build/reproduced/{recipe}-{layers}-{seed}.json"
    if not kept.exists():
        settings = train.resolve({"layers": layers, "seed": seed}, recipe=recipe)
        images = data.load(
            settings["data"],
            root=folder / settings["data"],
            classes=settings["classes"],
            normalize=settings["normalize"],
        )
        run = train.Run(settings, images, torch.device("cpu"))
        while not run.finished():
            run.train_epoch()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(run.history))
    return json.loads(kept.read_text())


def accuracies(runs: list[list[dict[str, Any]]]) -> str:
    return ", ".join(f"{run[-1]['test_accuracy']:.2%}" for run in runs)


def page(found: dict[tuple[str, str], list[list[dict[str, Any]]]]) -> str:
    lines = [
        "# The course's numbers, in full",
        "",
        "Written by `python docs/reproduced.py FOLDER`, which trains every recipe on all images of its data set",
        f"from the seeds {', '.join(map(str, SEEDS))}, on pyconv's layers and on torch's. One run alone is",
        "`python -m pyconv train --recipe NAME --seed SEED --root FOLDER`, its twin the same with `--layers torch`;",
        "`--download` in place of `--root FOLDER` fetches the data.",
        "",
        "| experiment | recipe | course | torch twin, by seed | pyconv, by seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for recipe, (title, course) in COURSE.items():
        cells = [accuracies(found[recipe, layers]) for layers in ("torch", "pyconv")]
        lines.append(f"| {title} | `{recipe}` | {course or '-'} | {cells[0]} | {cells[1]} |")
    lines += [
        "",
        "LeNet-5 by epoch, from the first seed. The files of Fashion-MNIST had a split of their own, 6,000 and 1,000",
        "images of each class, so that these accuracies compare with each other and no others:",
        "",
        "| epoch | loss, torch | pyconv | test accuracy, torch | pyconv | images a second, torch | pyconv |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for torchs, ours in zip(found["lenet", "torch"][0], found["lenet", "pyconv"][0]):
        lines.append(
            f"| {ours['epoch']} | {torchs['loss']:.4f} | {ours['loss']:.4f} | {torchs['test_accuracy']:.2%}"
            f" | {ours['test_accuracy']:.2%} | {torchs['images_per_second']:,.0f}"
            f" | {ours['images_per_second']:,.0f} |"
        )
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return "\n".join([*lines, "", f"{machine}.", ""])


def main(folder: Path, recipes: list[str]) -> None:
    assert set(COURSE) == set(RECIPES)
    found = {}
    for recipe in recipes or COURSE:
        for layers in ("torch", "pyconv"):
            found[recipe, layers] = [history(recipe, layers, seed, folder) for seed in SEEDS]
            print(f"{recipe}, {layers}: {accuracies(found[recipe, layers])}", flush=True)
    if len(found) == 2 * len(COURSE):
        (ROOT / "docs/reproduced.md").write_text(page(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
