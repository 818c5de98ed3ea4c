"""One training run: its model, its place in the data, and everything needed to continue it.

The order of the images is a function of the seed and the epoch, so the place in the data is two
numbers, epoch and step. With the state of model, optimiser, schedule, loss scaler and random
generators, that makes a run resumed from `state_dict` end with the very bits of one never stopped
(on the same device with the same number of threads and processes).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from pyconv import models
from pyconv.data import DataError, Dataset

from . import checkpoint, distributed, optim
from .settings import Settings, UsageError

EVAL_BATCH = 1000
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """Trains one model on one data set.

    Args:
        settings: as `settings.resolve` returns them.
        data: the images; they are moved to ``device`` as a whole.
        device: where to train.

    Attributes:
        epoch: epochs finished.
        step: steps taken in the epoch under way.
        history: one dict for each finished epoch: epoch, loss and train_accuracy (means over the
            epoch's batches as they were trained on), test_accuracy, seconds (of training alone),
            images_per_second.

    Raises:
        UsageError: the settings do not fit the data, the device or the number of processes.
    """

    def __init__(self, settings: Settings, data: Dataset, device: torch.device) -> None:
        self.settings, self.data, self.device = settings, data, device
        self.train = [tensor.to(device) for tensor in data.train]
        self.test = [tensor.to(device) for tensor in data.test]
        self.steps = self._steps_per_epoch()
        torch.manual_seed(settings["seed"])
        self.module = self._build()
        self._check_shares()
        self.model = distributed.parallel(self.module, device)
        self.optimizer = optim.optimizer(self.module, settings)
        self.schedule = optim.schedule(self.optimizer, settings, settings["epochs"] * self.steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings["autocast"] == "fp16")
        self.epoch = self.step = 0
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)  # of loss, of hits
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def _steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        count, size = len(self.data.train.labels), self.settings["batch_size"]
        if self.settings["drop_last"]:
            if size > count:
                raise UsageError(
                    f"--drop-last with --batch-size {size} leaves no batch of {count} images"
                )
            return count // size
        return -(-count // size)

    def _build(self) -> Module:
        settings = self.settings
        layers = torch.nn if settings["layers"] == "torch" else None  # None: pyconv.nn
        model = models.build(
            settings["model"], layers, num_classes=self.data.num_classes, in_channels=1
        )
        optim.initialize(model, settings["init"])
        if settings["sync_bn"]:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if settings["channels_last"]:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.device)

    def _check_shares(self) -> None:
        """Refuse batches too small to be shared out, or for batch norm to have a variance."""
        size, processes = self.settings["batch_size"], distributed.world_size()
        tail = len(self.data.train.labels) % size
        smallest = size if tail == 0 or self.settings["drop_last"] else tail
        if size < processes:
            raise UsageError(f"--batch-size {size} is less than the {processes} processes")
        has_batch_norm = any(isinstance(m, torch.nn.BatchNorm2d) for m in self.module.modules())
        if has_batch_norm and smallest // processes < 2:
            raise UsageError(
                f"batch norm needs two images or more in each process, but a batch of {smallest} "
                f"over {processes} process(es) leaves fewer: choose another --batch-size, or leave "
                "out the last batch of each epoch with --drop-last"
            )

    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.settings["epochs"]

    def train_epoch(self, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Take the epoch's remaining steps, test, and return the row added to `history`.

        ``after_step`` is called after each step; an exception it raises leaves the run between two
        steps, where `state_dict` may be taken.
        """
        order = torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + self.epoch)
        indices = torch.randperm(len(self.data.train.labels), generator=order).to(self.device)
        self.model.train()
        while self.step < self.steps:
            start = time.perf_counter()
            size = self.settings["batch_size"]
            self._train_step(indices[self.step * size :][:size])
            self.step += 1
            self.seconds += time.perf_counter() - start
            after_step()

        start = time.perf_counter()
        loss, hits = distributed.add(self.totals.clone()).tolist()  # waits for the GPU, too
        seconds = self.seconds + time.perf_counter() - start
        images = min(self.steps * self.settings["batch_size"], len(indices))
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "loss": loss / images,
                "train_accuracy": hits / images,
                "test_accuracy": self.test_accuracy(),
                "seconds": seconds,
                "images_per_second": images / seconds,
            }
        )
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.totals.zero_()
        return self.history[-1]

    def _train_step(self, batch: Tensor) -> None:
        """One optimiser step on the images whose indices are ``batch``, this process's share of it.

        The loss is the share's sum over the size of the global batch, times the number of
        processes by which averaging the gradients divides: so they are those of the global mean,
        also where the shares differ in size.
        """
        mine = distributed.share(batch)
        images, labels = self.train[0][mine], self.train[1][mine]
        logits = self._forward(self.model, images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
        self.optimizer.zero_grad(set_to_none=True)
        mean = loss * (distributed.world_size() / len(batch))
        self.scaler.scale(mean).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()
        with torch.no_grad():
            self.totals[0] += loss
            self.totals[1] += (logits.argmax(1) == labels).sum()

    def _forward(self, model: Module, images: Tensor) -> Tensor:
        if self.settings["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        dtype = _AUTOCAST.get(self.settings["autocast"])
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return model(images)

    @torch.no_grad()
    def test_accuracy(self) -> float:
        """Return the fraction of test images classified rightly, each process testing its share."""
        distributed.broadcast_buffers(self.module)
        self.module.eval()
        images, labels = (distributed.share(tensor) for tensor in self.test)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        for some, expected in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
            hits += (self._forward(self.module, some).argmax(1) == expected).sum()
        return distributed.add(hits).item() / len(self.data.test.labels)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue; call it in every process, between two steps."""
        mine = {
            "totals": self.totals.clone().cpu(),
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self._on_cuda() else None,
        }
        return {
            "format": checkpoint.FORMAT,
            "settings": self.settings,
            "fingerprint": self.data.fingerprint,
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule and self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "processes": distributed.gather(mine),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        With another number of processes the run continues, but not to the same bits.

        Raises:
            DataError: the data are not those the state was trained on.
        """
        if state["fingerprint"] != self.data.fingerprint:
            raise DataError(
                f"{self.data.name} ({self.data.origin}): not the images the run to resume was "
                f"trained on (CRC-32 {self.data.fingerprint:08x}, expected "
                f"{state['fingerprint']:08x})"
            )
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        processes = state["processes"]
        if len(processes) == distributed.world_size():
            mine = processes[distributed.rank()]
            torch.set_rng_state(mine["rng"])
            if mine["cuda_rng"] is not None and self._on_cuda():
                torch.cuda.set_rng_state(mine["cuda_rng"], self.device)
            self.totals.copy_(mine["totals"])
        elif distributed.rank() == 0:
            self.totals.copy_(sum(process["totals"] for process in processes))
        self.seconds = processes[0]["seconds"]

    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"
