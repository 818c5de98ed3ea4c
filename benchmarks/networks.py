"""Whole networks to time: those of pyconv.models, a MobileNetV2 and a stack of ConvNeXt blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import Module

import pyconv
from pyconv import models

from . import peers
from .subject import Subject, errors
from .summary import FUSED


class InvertedResidual(nn.Module):
    """x + project(depthwise(expand(x))), the sum only where the shape stays.

    Source: Sandler et al., MobileNetV2, arXiv:1801.04381, section 3.3 and table 1.
    """

    def __init__(self, ni: int, nf: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = ni * expansion
        expand = [] if expansion == 1 else _convolution(ni, hidden, 1)
        self.body = nn.Sequential(
            *expand,
            *_convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, nf, 1, bias=False),
            nn.BatchNorm2d(nf),
        )
        self.residual = stride == 1 and ni == nf

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def _convolution(ni: int, nf: int, size: int, stride: int = 1, groups: int = 1) -> list[Module]:
    return [
        nn.Conv2d(ni, nf, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(nf),
        nn.ReLU6(inplace=True),
    ]


def mobilenet_v2(classes: int = 1000) -> Module:
    """MobileNetV2 of width 1, without dropout: (N, 3, 224, 224) -> (N, 1000), 3,504,872 parameters."""
    layers, ni = _convolution(3, 32, 3, 2), 32
    for expansion, nf, count, stride in (  # table 2
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(count):
            layers.append(InvertedResidual(ni, nf, stride if i == 0 else 1, expansion))
            ni = nf
    layers += _convolution(ni, 1280, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes))


class ConvNeXtBlock(nn.Module):
    """x + scale * linear(gelu(linear(norm(depthwise 7x7(x))))), the linear layers over channels.

    Source: Liu et al., A ConvNet for the 2020s, arXiv:2201.03545, figure 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.project(nn.functional.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext_stack(classes: int = 10) -> Module:
    """ConvNeXt-T's stem, three blocks of its first stage, the step down to the second and three of that."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 4, 4),
        *(ConvNeXtBlock(96) for _ in range(3)),
        nn.Conv2d(96, 192, 2, 2),
        *(ConvNeXtBlock(192) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(192, classes),
    )


@dataclass(frozen=True)
class Network:
    """How to build it, its batch on a CPU, its images (C, H, W) and classes."""

    build: Callable[[], Module]
    batch: int
    image: tuple[int, int, int]
    classes: int


NETWORKS = {
    "lenet5": Network(partial(models.build, "lenet5", nn), 64, (1, 28, 28), 10),
    "simple_cnn": Network(partial(models.build, "simple_cnn", nn), 512, (1, 28, 28), 10),
    "simple_cnn_bn": Network(partial(models.build, "simple_cnn_bn", nn), 512, (1, 28, 28), 10),
    "resnet20": Network(partial(models.build, "resnet20", nn), 32, (3, 32, 32), 10),
    "resnet18": Network(partial(models.build, "resnet18", nn), 4, (3, 224, 224), 1000),
    "mobilenet_v2": Network(mobilenet_v2, 4, (3, 224, 224), 1000),
    "convnext_stack": Network(convnext_stack, 4, (3, 224, 224), 10),
}
# Of outputs, and of all gradients together. Where batch norm over few values and ReLUs near their kink amplify
# rounding, a step may err four times as much as float64's own result moves when every parameter is moved by this much,
# relative: what a float32 convolution errs. Four, because which ReLUs flip is chance: the same move with other random
# numbers gave 0.004 to 0.012 for ResNet-18, whose error is 6.5e-6 where its ReLUs are held as float64's, else 4.2e-3.
LARGEST_STEP_ERROR = 1e-4
ROUNDING = 2.0**-20
TIMES_SENSITIVITY = 4


@dataclass(frozen=True)
class Twin:
    """A network with torch's layers and one batch, the same whenever it is made."""

    model: Module
    x: Tensor
    labels: Tensor


def twin(name: str, batch: int | None, channels_last: bool) -> Twin:
    network = NETWORKS[name]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model = network.build()
    model.to(memory_format=layout)  # type: ignore[call-overload]
    n = batch or network.batch
    x = torch.randn(n, *network.image).to(memory_format=layout)
    return Twin(model, x, torch.randint(network.classes, (n,)))


def model_of(player: str, twin: Twin, mode: str = "train") -> Module:
    """The twin's model with the player's layers; in training, ours run batch norm and ReLU as one."""
    model = copy.deepcopy(twin.model)
    if player == FUSED:
        return pyconv.prepack(pyconv.fuse(model.eval(), report=lambda _: None))
    if player == "pyconv":
        return pyconv.convert(model, fuse=mode == "train", report=lambda _: None)
    return model


def training_step(model: Module, twin: Twin) -> Callable[[], Tensor]:
    """Forward, loss, backward and one step of SGD."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(twin.x), twin.labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference(player: str, twin: Twin) -> Callable[[], Tensor]:
    model = model_of(player, twin, "infer").eval()
    if player in peers.NEEDS:
        return peers.inference(player, model, twin.x)

    def infer() -> Tensor:
        with torch.inference_mode():
            return model(twin.x)

    return infer


def result(model: Module, x: Tensor, labels: Tensor, mode: str) -> Tensor:
    """What a step computes: the logits, or all gradients in one vector."""
    if mode == "infer":
        with torch.inference_mode():
            return (model.eval() if model.training else model)(x)
    model.train().zero_grad()
    nn.functional.cross_entropy(model(x), labels).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@lru_cache(maxsize=1)
def _judge(name: str, batch: int | None, mode: str) -> Tensor:
    t = twin(name, batch, channels_last=False)
    return result(t.model.double(), t.x.double(), t.labels, mode)


@lru_cache(maxsize=1)
def _sensitivity(name: str, batch: int | None, mode: str) -> float:
    t = twin(name, batch, channels_last=False)
    model = t.model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + ROUNDING * torch.randn_like(parameter))
    return errors(result(model, t.x.double(), t.labels, mode), _judge(name, batch, mode))[0]


@lru_cache(maxsize=1)
def _errors(
    player: str, name: str, batch: int | None, last: bool, mode: str
) -> tuple[float, float]:
    t = twin(name, batch, last)
    if player in peers.NEEDS:
        actual = inference(player, t)()
    else:
        actual = result(model_of(player, t, mode), t.x, t.labels, mode)
    return errors(actual, _judge(name, batch, mode))


def subject(player: str, name: str, batch: int | None, last: bool, mode: str) -> Subject:
    """The step, checked against float64."""
    t = twin(name, batch, last)
    if mode == "train":
        call = training_step(model_of(player, t), t)
    else:
        call = inference(player, t)
    error, max_error = _errors(player, name, batch, last, mode)
    allowed = LARGEST_STEP_ERROR
    if error > allowed:
        allowed = max(allowed, TIMES_SENSITIVITY * _sensitivity(name, batch, mode))
    return Subject(call, error, max_error, allowed)
