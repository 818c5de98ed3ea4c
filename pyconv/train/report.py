"""What a run prints: one line per epoch for people or, with --json, one JSON object per line."""

from __future__ import annotations

import json
import sys
from math import isfinite
from typing import Any

from . import distributed
from .run import Run


class Report:
    """Prints to stdout, from rank 0 only; the progress bar goes to stderr if that is a terminal."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.silent = distributed.rank() != 0
        self.bar: Any = None

    def event(self, name: str, text: str, **fields: Any) -> None:
        """Print ``text``, or the event's name and fields as JSON, which has null for NaN."""
        if self.silent:
            return
        if self.as_json:
            finite = {k: v for k, v in fields.items() if not isinstance(v, float) or isfinite(v)}
            text = json.dumps({"event": name, **dict.fromkeys(fields), **finite})
        print(text, flush=True)

    def start(self, run: Run, threads: int) -> None:
        """Say what is trained on what."""
        parameters = sum(p.numel() for p in run.module.parameters())
        train, test = len(run.data.train.labels), len(run.data.test.labels)
        processes = distributed.world_size()
        text = (
            f"{run.settings['model']} ({parameters:,} parameters, {run.settings['layers']} layers) "
            f"on {run.data.name} ({run.data.origin}: {train:,} train, {test:,} test), "
            f"{run.device}, {threads} thread(s), {processes} process(es)"
        )
        if run.epoch or run.step:
            text += f"; resumed in epoch {run.epoch + 1} at step {run.step} of {run.steps}"
        self.event(
            "start",
            text,
            settings=run.settings,
            parameters=parameters,
            origin=run.data.origin,
            train_images=train,
            test_images=test,
            device=str(run.device),
            threads=threads,
            processes=processes,
            epoch=run.epoch,
            step=run.step,
        )

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Print the row of an epoch; the seconds are of training alone, without the test."""
        self._close()
        self.event(
            "epoch",
            f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}  "
            f"train {row['train_accuracy']:.4f}  test {row['test_accuracy']:.4f}  "
            f"{row['seconds']:.2f} s  {row['images_per_second']:,.0f} images/s",
            epochs=epochs,
            **row,
        )

    def progress(self, run: Run) -> None:
        """Move the bar to the run's step."""
        if self.silent or self.as_json or not sys.stderr.isatty():
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=run.steps,
                desc=f"epoch {run.epoch + 1}/{run.settings['epochs']}",
                leave=False,
                unit="batch",
            )
        self.bar.update(run.step - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
