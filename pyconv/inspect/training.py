"""A learning rate to start with, the schedule as it will run, and what a run recorded."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from pyconv.inspect._extras import Shown, axes, pyplot

Loss = Callable[[Any, Tensor], Tensor]


@dataclass
class LearningRates(Shown):
    """Losses of a few steps at ever larger learning rates."""

    rates: Tensor
    losses: Tensor  # smoothed: the mean of up to seven steps around each
    raw: Tensor

    @property
    def steepest(self) -> float:
        """Where the smoothed loss falls fastest over log(rate)."""
        if len(self.losses) < 3:
            return float(self.rates[0])
        bottom = int(self.losses.argmin())
        slope = torch.gradient(self.losses[: max(bottom, 2) + 1])[0]
        return float(self.rates[slope.argmin()])

    @property
    def minimum(self) -> float:
        """A tenth of the rate with the smallest smoothed loss."""
        return float(self.rates[self.losses.argmin()]) / 10

    def plot(self, ax: Any = None) -> Any:
        ax = axes(ax, figsize=(6, 3.4))
        ax.plot(self.rates.numpy(), self.raw.numpy(), color="0.8", label="loss")
        ax.plot(self.rates.numpy(), self.losses.numpy(), label="smoothed")
        for rate, name in ((self.steepest, "steepest"), (self.minimum, "minimum / 10")):
            at = int((self.rates - rate).abs().argmin())
            ax.plot(rate, float(self.losses[at]), "o", label=f"{name}: {rate:.2g}")
        low, high = float(self.raw.min()), float(self.losses[0])
        ax.set_ylim(low - 0.1 * (high - low), high + 0.6 * (high - low))
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
        return ax


def lr_find(
    model: Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss = torch.nn.functional.cross_entropy,
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW,
    start: float = 1e-6,
    end: float = 10.0,
    steps: int = 100,
    batch_size: int = 64,
    seed: int = 0,
) -> LearningRates:
    """Trains a copy of the model with a learning rate that grows from step to step.

    rate(i) = start * (end / start)^(i / (steps - 1)); ends early where the running mean of the loss is above
    four times its best, or no number. The model and the random state stay as they were.

    Source: Smith, Cyclical learning rates for training neural networks, arXiv:1506.01186.

    Raises:
        ValueError: start and end are no growing positive rates, or there are fewer than 3 steps.

    >>> from pyconv import data, inspect, models
    >>> digits = data.load("mnist", normalize=True).train
    >>> found = inspect.lr_find(models.build("simple_cnn"), digits.images[:512], digits.labels[:512], steps=30)
    >>> bool(1e-4 < found.steepest < 1)
    True
    """
    if not 0 < start < end or steps < 3:
        raise ValueError(
            f"lr_find: needs 0 < start < end and at least 3 steps, got start={start}, end={end}, steps={steps}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = copy.deepcopy(model).train()
        optim = optimizer(trained.parameters(), lr=start)
        order = torch.Generator().manual_seed(seed)
        average, best, raw, rates = 0.0, math.inf, [], []
        for step in range(steps):
            rate = start * (end / start) ** (step / (steps - 1))
            for group in optim.param_groups:
                group["lr"] = rate
            some = torch.randint(len(images), (batch_size,), generator=order).to(images.device)
            value = loss(trained(images[some]), labels[some])
            optim.zero_grad(set_to_none=True)
            value.backward()
            optim.step()
            average = 0.9 * average + 0.1 * value.item()
            corrected = average / (1 - 0.9 ** (step + 1))
            if not math.isfinite(corrected) or corrected > 4 * best:
                break
            best = min(best, corrected)
            rates.append(rate)
            raw.append(value.item())
    smoothed = [statistics.fmean(raw[max(i - 3, 0) : i + 4]) for i in range(len(raw))]
    return LearningRates(torch.tensor(rates), torch.tensor(smoothed), torch.tensor(raw))


@dataclass
class Schedule(Shown):
    """Learning rate and momentum of every step."""

    rates: Tensor
    momenta: Tensor

    def plot(self, ax: Any = None) -> Any:
        """`ax` is two axes or None; returns the two."""
        ax = (
            pyplot().subplots(1, 2, figsize=(8, 2.6), layout="constrained")[1] if ax is None else ax
        )
        for one, values, name in zip(ax, (self.rates, self.momenta), ("learning rate", "momentum")):
            one.plot(values.numpy())
            one.set(xlabel="step", title=name)
            one.grid(alpha=0.3)
        return ax


def schedule(
    steps: int, lr: float | None = None, make: Callable[[Optimizer], Any] | None = None
) -> Schedule:
    """The learning rate and momentum of each of `steps` steps, without training.

    Args:
        lr: the largest rate of the one-cycle schedule of `python -m pyconv train`.
        make: instead, any scheduler: a function of an optimiser, such as
            lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10).

    Raises:
        ValueError: neither or both of lr and make are given.

    >>> from pyconv import inspect
    >>> found = inspect.schedule(100, lr=0.06)
    >>> found.rates.max().item() == 0.06, int(found.rates.argmax())
    (True, 24)
    >>> [round(found.momenta[i].item(), 3) for i in (0, 24, 99)]
    [0.95, 0.85, 0.95]
    """
    if (lr is None) == (make is None):
        raise ValueError("schedule: give one of lr and make")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr or 1.0, momentum=0.9)
    if make is not None:
        scheduler = make(optimizer)
    else:
        from pyconv.train import optim

        scheduler = optim.schedule(optimizer, {"schedule": "one-cycle", "lr": lr}, steps)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return Schedule(
        torch.tensor(rates, dtype=torch.float64), torch.tensor(momenta, dtype=torch.float64)
    )


def _rates(optimizer: Optimizer) -> tuple[float, float]:
    """(learning rate, momentum or Adam's beta1) of the first group."""
    group = optimizer.param_groups[0]
    return group["lr"], group.get("momentum", group.get("betas", (math.nan,))[0])


class Recorder(Shown):
    """Losses, learning rates and momenta of every step, metrics of every epoch.

    Call `step` after each step of a loop of your own, and `epoch` after each epoch; or let a
    `pyconv.train.Run` call it: run.train_epoch(after_step=recorder.following(run)).

    >>> from pyconv import inspect
    >>> recorder = inspect.Recorder()
    >>> for loss in (2.3, 1.1, 0.7):
    ...     recorder.step(loss, lr=0.1)
    >>> recorder.epoch(accuracy=0.9)
    >>> recorder.losses, recorder.metrics
    ([2.3, 1.1, 0.7], [{'step': 3, 'accuracy': 0.9}])
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.momenta: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def step(
        self,
        loss: float | Tensor,
        optimizer: Optimizer | None = None,
        lr: float = math.nan,
        momentum: float = math.nan,
    ) -> None:
        """Note a step; learning rate and momentum are the optimiser's first group's, or as given."""
        if optimizer is not None:
            lr, momentum = _rates(optimizer)
        self.losses.append(loss.item() if isinstance(loss, Tensor) else float(loss))
        self.rates.append(float(lr))
        self.momenta.append(float(momentum))

    def epoch(self, **metrics: float) -> None:
        """Note what was measured after an epoch."""
        self.metrics.append({"step": len(self.losses), **metrics})

    def following(self, run: Any) -> Callable[[], None]:
        """A callback for Run.train_epoch: the mean loss of each batch, and the rates it was made with."""
        before = {"total": float(run.totals[0]), "step": run.step}
        used = _rates(run.optimizer)

        def after_step() -> None:
            nonlocal used
            if run.step <= before["step"]:
                before["total"] = 0.0  # an epoch began
            total = float(run.totals[0])
            size, count = run.settings["batch_size"], len(run.data.train.labels)
            images = min(size, count - (run.step - 1) * size)
            self.step((total - before["total"]) / images, lr=used[0], momentum=used[1])
            before.update(total=total, step=run.step)
            used = _rates(run.optimizer)

        return after_step

    def smoothed(self, beta: float = 0.9) -> list[float]:
        """The exponential moving average of the losses, corrected for its start (Adam's way)."""
        average, found = 0.0, []
        for i, loss in enumerate(self.losses, start=1):
            average = beta * average + (1 - beta) * loss
            found.append(average / (1 - beta**i))
        return found

    def plot(self, ax: Any = None) -> Any:
        """Loss by step and metrics by epoch; `ax` is two axes or None; returns the two."""
        ax = pyplot().subplots(1, 2, figsize=(9, 3), layout="constrained")[1] if ax is None else ax
        ax[0].plot(self.losses, color="0.8", linewidth=0.8)
        ax[0].plot(self.smoothed())
        ax[0].set(xlabel="step", title="loss")
        names: Iterable[str] = dict.fromkeys(k for m in self.metrics for k in m if k != "step")
        for name in names:
            points = [(m["step"], m[name]) for m in self.metrics if name in m]
            ax[1].plot(*zip(*points), "o-", label=name)
        ax[1].set(xlabel="step", title="metrics")
        if self.metrics:
            low, high = ax[1].get_ylim()
            more = max(0.1 - (high - low), 0) / 2  # what hardly changes should look so
            ax[1].set_ylim(low - more, high + more)
            ax[1].legend(fontsize=8)
        for one in ax:
            one.grid(alpha=0.3)
        return ax
