"""Swap the layers of an existing model for pyconv's, and back.

    pyconv.convert(model)                   # torch.nn.Conv2d and friends become pyconv.nn's
    pyconv.convert(model, report=print)     # ... and say what was left, and why
    pyconv.convert(model, fuse=True)        # ... and run batch norm, sum and ReLU as one
    pyconv.revert(model)                    # back again

Our layers differ from torch's by their class alone (pyconv.nn), so swapping a layer is assigning
its class. The object stays: parameters, buffers, hooks, parametrizations, attributes, the training
flag, and whatever holds a reference to any of them, such as an optimiser.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from pyconv.nn import _ours
from pyconv.nn.batch_norm_relu import NormReLUSequential, fused_sequential, is_pair
from pyconv.ops._check import DTYPES

_TO_OURS: dict[type, type] = {
    getattr(torch.nn, name): ours for name, ours in vars(_ours).items() if isinstance(ours, type)
}
_TO_TORCHS: dict[type, type] = {ours: torchs for torchs, ours in _TO_OURS.items()}

# Layers of a kind pyconv has: one that is left needs a reason.
_KINDS = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.pooling._MaxPoolNd,
    torch.nn.modules.pooling._MaxUnpoolNd,
    torch.nn.modules.pooling._AvgPoolNd,
    torch.nn.modules.pooling._LPPoolNd,
    torch.nn.modules.pooling._AdaptiveAvgPoolNd,
    torch.nn.modules.pooling._AdaptiveMaxPoolNd,
    torch.nn.FractionalMaxPool2d,
    torch.nn.FractionalMaxPool3d,
)

_calls_in_turn = torch.nn.Sequential.forward
_dtype_names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
_log = logging.getLogger("pyconv")
_Model = TypeVar("_Model", bound=Module)


@dataclass(frozen=True)
class Report:
    """What `convert` or `revert` did to a model; keys are names as in model.named_modules().

    `swapped` maps each layer to its class, `left` each layer of a kind pyconv has (convolution,
    pooling, batch norm) that was not swapped to the reason.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        kinds = sorted(Counter(self.swapped.values()).items())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        lines = [f"{len(self.swapped)} layers swapped" + (f": {counts}" if counts else "")]
        lines += [f"  left {name or 'the model itself'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def _write_to_log(report: Report) -> None:
    _log.log(logging.WARNING if report.left else logging.INFO, "%s", report)


def convert(
    model: _Model, *, fuse: bool = False, report: Callable[[Report], None] = _write_to_log
) -> _Model:
    """Makes the layers of `model` that pyconv has run on its kernels, in place.

    Swapped are layers whose class is exactly torch's (or torch's with parametrizations): the
    convolutions, pools and batch norms of pyconv.nn, lazy ones included, and SyncBatchNorm. The
    model computes the same function up to rounding; its state_dict is unchanged. Functions that a
    model's own code calls are not seen: pyconv.override_torch routes those.

    Convert last: torch.fx tracing, quantisation and SyncBatchNorm.convert_sync_batchnorm look for
    torch's own layers, and what they return can be converted.

    Args:
        model: any module; it may itself be such a layer. A layer shared by several parents is
            swapped for all of them.
        fuse: also swap the class of what calls a BatchNorm2d and then a ReLU or ReLU6, so that the
            two, and the sum with a shortcut between them, run as ops.batch_norm_relu, in training
            too: a Sequential, or a subclass of it with no forward of its own, and a block whose
            class names its twin in an attribute `fused_class`, as those of pyconv.models.resnet do.
            Names, layers and state_dict stay.
        report: called once with the `Report` of what was swapped, what was left and why. By default
            it goes to the logger "pyconv": as a warning if anything was left, else as information.
            `report=print` prints it.

    Returns:
        `model`, the same object.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
    """
    done = _swap("convert", model, _TO_OURS)
    if fuse:
        for name, module in _walk(model, "", set()):
            new = _fused_class(module)
            if new is not None and not _frozen(module) and "forward" not in vars(module):
                done.swapped[name] = type(module).__name__
                module.__class__ = new
    report(done)
    return model


def revert(model: _Model, *, report: Callable[[Report], None] = _write_to_log) -> _Model:
    """The inverse of `convert`: layers of pyconv.nn become torch.nn's, in place.

    Arguments, return value and errors as `convert`. A layer's `algorithm` stays where it is, a
    plain attribute that torch does not read and that counts again after the next `convert`.

    Revert before whatever knows only torch's own layers or operators, such as an export to ONNX.
    """
    done = _swap("revert", model, _TO_TORCHS)
    done.swapped.update(unfuse(model))
    report(done)
    return model


def _fused_class(module: Module) -> type | None:
    """What runs batch norms of `module` together with the ReLUs behind them, None where nothing does."""
    if (new := vars(type(module)).get("fused_class")) is not None:
        return new
    if not isinstance(module, torch.nn.Sequential) or type(module).forward is not _calls_in_turn:
        return None
    pairs = zip(module, list(module)[1:])
    return fused_sequential(type(module)) if any(is_pair(*pair) for pair in pairs) else None


def unfuse(model: Module) -> dict[str, str]:
    """Undoes convert's fuse=True in place; the names and classes of what was fused."""
    undone = {}
    for name, module in _walk(model, "", set()):
        old = type(module)
        plain = torch.nn.Sequential if old is NormReLUSequential else vars(old).get("plain_class")
        if plain is not None and not _frozen(module):
            undone[name] = old.__name__
            module.__class__ = plain
    return undone


def _swap(caller: str, model: Module, classes: dict[type, type]) -> Report:
    if not isinstance(model, Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}")
    changes: list[tuple[Module, type]] = []
    done = Report({}, {})
    for name, module in _walk(model, "", set()):
        new = _class_after(module, classes)
        why = _why_left(module, new, classes)
        if why:
            done.left[name] = why
        elif new is not None:
            changes.append((module, new))
            done.swapped[name] = type(module).__name__
    for module, new in changes:
        module.__class__ = new
    return done


def _walk(module: Module, name: str, seen: set[Module]) -> Iterator[tuple[str, Module]]:
    """named_modules(), without what lies inside a compiled or scripted module."""
    if module in seen:
        return
    seen.add(module)
    yield name, module
    if not _frozen(module):
        for child_name, child in module.named_children():
            yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def _frozen(module: Module) -> str:
    """Why the module's code can no longer change, or ""."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript keeps the code it was compiled from; swap first, then script"
    if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
        return "it is compiled already; swap first, then torch.compile"
    return ""


def _class_after(module: Module, classes: dict[type, type]) -> type | None:
    """The class that `module` should have, or None if its class is not one we swap."""
    old = type(module)
    if old in classes:
        return classes[old]
    if parametrize.is_parametrized(module) and old.__bases__[0] in classes:
        # parametrize gave the module a subclass of its own that holds the properties. A copy of
        # the module shares that class, so it is not edited but made again over the new base.
        body = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
        return type(old.__name__, (classes[old.__bases__[0]],), body)
    return None


def _why_left(module: Module, new: type | None, classes: dict[type, type]) -> str:
    """The reason to leave a layer, or "" for one to swap and for a module that is none of ours."""
    kind = type(module)
    if why := _frozen(module):
        return why
    if new is not None and "forward" in vars(module):
        return f"the forward of this {kind.__name__} was replaced on the object itself"
    if new is not None:
        return _why_not_its_tensors(module) if classes is _TO_OURS else ""
    if classes is _TO_OURS and issubclass(kind, tuple(_TO_TORCHS)):
        return ""
    for known in classes:
        if issubclass(kind, known):
            return (
                f"{kind.__name__} is a subclass of {known.__name__} and may compute something else"
            )
    return _why_no_layer(module) if classes is _TO_OURS else ""


def _why_not_its_tensors(module: Module) -> str:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in DTYPES:
            return f"{type(module).__name__} of {tensor.dtype}; pyconv has {_dtype_names}"
    return ""


def _why_no_layer(module: Module) -> str:
    name = type(module).__name__
    if type(module).__module__.startswith("torch.ao.") and ("Conv" in name or "BatchNorm" in name):
        return f"{name} is quantised; pyconv has {_dtype_names}"
    return f"pyconv has no {name}" if isinstance(module, _KINDS) else ""
