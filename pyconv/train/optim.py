"""Optimisers, schedules and initial weights by name."""

from __future__ import annotations

import torch
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from .settings import Settings, UsageError

ONE_CYCLE_STEPS = 5  # with fewer, the way up has no step and OneCycleLR divides by zero


def optimizer(model: Module, settings: Settings) -> Optimizer:
    """Return the optimiser that ``settings`` name; `momentum` is Adam's beta1."""
    lr, momentum, decay = settings["lr"], settings["momentum"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=decay)
    adam = torch.optim.Adam if settings["optimizer"] == "adam" else torch.optim.AdamW
    betas = (momentum, settings["beta2"])
    return adam(model.parameters(), lr, betas, settings["eps"], weight_decay=decay)


def schedule(optimizer: Optimizer, settings: Settings, steps: int) -> OneCycleLR | None:
    """Return the schedule over ``steps`` optimiser steps, None if the learning rate is constant.

    "one-cycle" is fastai's: a quarter of the steps up from lr / 25, the rest down to lr / 100,000,
    both along cosines, while the momentum goes from 0.95 to 0.85 and back.

    Raises:
        UsageError: too few steps for one cycle.
    """
    if settings["schedule"] == "constant":
        return None
    if steps < ONE_CYCLE_STEPS:
        raise UsageError(
            f"--schedule one-cycle needs {ONE_CYCLE_STEPS} steps or more, this run has {steps}: "
            "more epochs or smaller batches would do"
        )
    return OneCycleLR(
        optimizer,
        settings["lr"],
        total_steps=steps,
        pct_start=0.25,
        div_factor=25,
        final_div_factor=1e5 / 25,
        max_momentum=0.95,
        base_momentum=0.85,
    )


@torch.no_grad()
def initialize(model: Module, how: str) -> None:
    """Draw the weights of convolutions and linear layers anew; biases stay as they are.

    "default" leaves the model as built; "xavier" is uniform (Glorot, Bengio, AISTATS 2010, eq. 16);
    "kaiming" is normal for ReLU (He et al., arXiv:1502.01852, eq. 10).
    """
    if how == "default":
        return
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            if how == "xavier":
                torch.nn.init.xavier_uniform_(module.weight)
            else:
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
