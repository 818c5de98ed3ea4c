"""Models whose layers come from a namespace: `pyconv.nn` by default, `torch.nn` for the twin.

    lenet = pyconv.models.build("lenet5")                # on our kernels
    twin = pyconv.models.build("lenet5", nn=torch.nn)    # the same code on torch's

`names` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

from torch.nn import Module

from .lenet import LeNet5
from .resnet import BasicBlock, ResNet, resnet18, resnet20
from .simple_cnn import simple_cnn, simple_cnn_3v7

__all__ = [
    "BasicBlock",
    "LeNet5",
    "ResNet",
    "build",
    "names",
    "resnet18",
    "resnet20",
    "simple_cnn",
    "simple_cnn_3v7",
]

_BUILDERS: dict[str, Callable[..., Module]] = {
    "lenet5": LeNet5,
    "lenet5_relu": partial(LeNet5, variant="relu"),
    "simple_cnn_3v7": simple_cnn_3v7,
    "simple_cnn": simple_cnn,
    "simple_cnn_bn": partial(simple_cnn, batch_norm=True),
    "resnet18": resnet18,
    "resnet18_small": partial(resnet18, stem="small", num_classes=10),
    "resnet20": resnet20,
}


def names() -> list[str]:
    """Return the names `build` knows."""
    return list(_BUILDERS)


def build(
    name: str,
    nn: ModuleType | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> Module:
    """Build the model called ``name``.

    Args:
        name: one of `names()`.
        nn: the layer namespace; None is `pyconv.nn`.
        num_classes: width of the output; None is the model's own default.
        in_channels: channels of the images; None is the model's own default.

    Raises:
        ValueError: no model has this name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"no model is called {name!r}: choose from {', '.join(_BUILDERS)}")
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    return _BUILDERS[name](nn=nn, **{k: v for k, v in sizes.items() if v is not None})
