"""Whole networks: one training step and one inference, pyconv's layers beside torch's."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from benchmarks.harness import conditions, write
from pyconv import models
from pyconv._timing import alternate

# name: model of pyconv.models, batch, input (C, H, W), classes
NETWORKS: dict[str, tuple[str, int, tuple[int, int, int], int]] = {
    "lenet5": ("lenet5", 64, (1, 28, 28), 10),
    "lenet5_relu": ("lenet5_relu", 64, (1, 28, 28), 10),
    "simple_cnn": ("simple_cnn", 512, (1, 28, 28), 10),
    "simple_cnn_bn": ("simple_cnn_bn", 512, (1, 28, 28), 10),
    "resnet20": ("resnet20", 32, (3, 32, 32), 10),
    "resnet18": ("resnet18", 4, (3, 224, 224), 1000),
}


def training_step(model: Module, x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference(model: Module, x: Tensor) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return infer


def twins(name: str, channels_last: bool) -> tuple[Module, Module, Tensor, Tensor]:
    """The model with our layers and with torch's, the same weights, and one batch."""
    kind, batch, image, classes = NETWORKS[name]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    torchs = models.build(kind, nn=torch.nn, num_classes=classes, in_channels=image[0])
    ours = models.build(kind, num_classes=classes, in_channels=image[0])
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(batch, *image).to(memory_format=layout)
    return (
        ours.to(memory_format=layout),
        torchs.to(memory_format=layout),
        x,
        torch.randint(classes, (batch,)),
    )


def rows(name: str, channels_last: bool, seconds: float) -> list[dict[str, Any]]:
    """A row for training and one for inference; the twins' results are compared before any timing."""
    found = []
    for mode in ("train", "infer"):
        ours, torchs, x, labels = twins(name, channels_last)
        calls = {}
        for key, model in (("pyconv", ours), ("torch", torchs)):
            model.train(mode == "train")
            calls[key] = training_step(model, x, labels) if mode == "train" else inference(model, x)
        torch.testing.assert_close(*(call() for call in calls.values()), rtol=1e-3, atol=1e-4)
        times = alternate(calls, seconds=seconds)
        found.append(
            {
                "network": name,
                "mode": mode,
                "layout": "NHWC" if channels_last else "NCHW",
                **{k: t.median for k, t in times.items()},
                "speedup": times["torch"].median / times["pyconv"].median,
                "reliable": all(t.reliable for t in times.values()),
            }
        )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="regular expression on the network's name")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="per call and row")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    run: dict[str, Any] = {"conditions": conditions(args.threads), "rows": []}
    for name in NETWORKS:
        if not re.search(args.only, name):
            continue
        for channels_last in (False, True):
            for row in rows(name, channels_last, args.seconds):
                run["rows"].append(row)
                sys.stdout.write(
                    f"{name:<14} {row['layout']} {row['mode']:<6} {row['pyconv'] * 1e3:9.2f} ms"
                    f"  torch {row['torch'] * 1e3:9.2f} ms  x{row['speedup']:.2f}"
                    f"{'' if row['reliable'] else ' ?'}\n"
                )
                sys.stdout.flush()
    sys.stdout.write(f"{write(f'steps-{args.threads}t', run)}\n")
    return 0
