"""One layer in the place of convolution, batch norm, ReLU and the sum with a shortcut.

    fast = pyconv.fuse(model.eval())        # a copy for inference; the model stays as it is
    pyconv.fuse(model, report=print)        # ... and say what was fused, what was not and why

A batch norm in evaluation is a multiplication and an addition per channel, so a convolution with
other weights does its work; a ReLU, and a shortcut's addition before it, cost nothing where the
convolution stores its result. What remains of a network is a chain of `FusedConv2d`.

How: torch.fx writes down which layers a module's forward calls, its children as closed boxes; in
that graph chains are found and replaced, and then each child is looked at by itself. A child keeps
its name and place; a fused layer has the names of what it stands for, joined by "_".
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import Module, ModuleDict, ModuleList, Sequential

from pyconv import _chains, _tracing
from pyconv.convert import Report as Conversion
from pyconv.convert import _frozen, convert, unfuse
from pyconv.nn.fused import FusedConv2d

_log = logging.getLogger("pyconv")


@dataclass(frozen=True)
class Report:
    """What `fuse` made; keys are names as in the fused model's named_modules().

    `fused` maps each fused layer to the layers it stands for; `left` maps what was not fused or not
    converted, though its kind could be, to the reason.
    """

    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} fused layers"]
        lines += [f"  {name} = {layers}" for name, layers in self.fused.items()]
        lines += [f"  left {name or 'the model itself'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def _write_to_log(report: Report) -> None:
    _log.log(logging.WARNING if report.left else logging.INFO, "%s", report)


def fuse(model: Module, *, report: Callable[[Report], None] = _write_to_log) -> Module:
    """A copy of `model` for inference: chains of its layers fused, the others on pyconv's kernels.

    A chain is a convolution followed by any of: batch norm, an addition, a ReLU or ReLU6, in that order,
    each read by nothing but the next. Batch norm is folded in float64 and rounded once:

        weight' = weight * gamma / sqrt(var + eps)      bias' = (bias - mean) * gamma / sqrt(...) + beta

    The copy computes what the model computes in evaluation, up to rounding, from values of its own:
    training the model further does not change it. It has the model's forward and its layers, but
    not its class, other methods, nor layers that forward does not use; its parameters want no
    gradient, and it cannot go back to training mode.

    A module is left as it is, and the reason reported, where its forward cannot be followed: where
    it decides by the values, sizes or types of its inputs, has optional arguments, keeps something
    for later, or has hooks. Its children are then still fused one by one. Any other
    activation stays a layer of its own.

    Args:
        model: any module, torch's layers or pyconv's, in evaluation mode. If it has nothing to
            fuse, the copy is that of a converted model; fuse(fuse(model)) is fuse(model).
        report: called once with the `Report`. By default it goes to the logger "pyconv": as a
            warning if anything was left, else as information. `report=print` prints it.

    Returns:
        A new module in evaluation mode; `print` it to see what each fused layer stands for.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
        ValueError: `model` is in training mode, where batch norm depends on the batch.

    Source: Ioffe and Szegedy, Batch Normalization, arXiv:1502.03167, section 3.1 (inference).
    """
    if not isinstance(model, Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError(
            "fuse: the model is in training mode, where batch norm depends on the batch and cannot"
            " be folded; call model.eval() first"
        )
    done = Report()
    plain = _copy(model)
    unfuse(plain)
    fused = _Fuser(done).module(plain, "").requires_grad_(False)
    conversions: list[Conversion] = []
    convert(fused, report=conversions.append)
    for name, module in fused.named_modules():
        if type(module) in _chains.NORMS:
            done.left[name] = _why_not_folded(module)
    done.left.update(conversions[0].left)
    report(done)
    return fused


def _copy(model: Module) -> Module:
    with torch.no_grad():  # TorchScript copies its tensors by clone, which is recorded
        return copy.deepcopy(model)


def _why_not_folded(norm: Module) -> str:
    if _tracing.has_hooks(norm):
        return "it has hooks"
    if norm.training or norm.running_mean is None:
        return f"this {type(norm).__name__} uses the statistics of each batch"
    return f"this {type(norm).__name__} does not follow a convolution that only it reads"


class _Fuser:
    """Goes down a model; what it makes of a module that is used twice, it makes once."""

    def __init__(self, done: Report) -> None:
        self._done = done
        self._made: dict[Module, Module] = {}

    def module(self, module: Module, name: str) -> Module:
        if module not in self._made:
            self._made[module] = self._fused(module, name)
        return self._made[module]

    def _fused(self, module: Module, name: str) -> Module:
        if (
            _frozen(module)
            or _chains.is_layer(module)
            or not any(map(_chains.is_conv, module.modules()))
        ):
            return module
        if isinstance(module, (ModuleList, ModuleDict)):
            return self._only_children(module, name)
        try:
            graph = _chains.traced(module)
        except _tracing.Untraceable as why:
            self._done.left[name] = f"{why}; its children were looked at one by one"
            return self._only_children(module, name)
        return self._rewritten(module, graph, name)

    def _only_children(self, module: Module, name: str) -> Module:
        for child_name, child in module.named_children():
            child_path = _join(name, child_name)
            if isinstance(child, Sequential) and not _tracing.only_calls(module, child_name):
                self._only_children(child, child_path)
                self._done.left[child_path] = "the module it belongs to may take it apart"
            else:
                module._modules[child_name] = self.module(child, child_path)
        return module

    def _rewritten(self, module: Module, graph: fx.Graph, name: str) -> Module:
        """`module` with its chains and its children fused, as a GraphModule if it had a chain."""
        layers: dict[str, Module] = {}
        while (chain := _chains.first(graph, module, layers)) is not None:
            target = chain.target(graph, layers)
            layer = FusedConv2d.like(
                chain.conv,
                *_folded(chain.conv, chain.norm),
                chain.ceiling,
                " + ".join(chain.labels),
            )
            layers[target] = layer
            self._done.fused[_join(name, target)] = layer.stands_for
            chain.replace(graph, target)

        referred = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
        called = [str(n.target) for n in graph.nodes if n.op == "call_module"]
        called = [target for target in dict.fromkeys(called) if target not in layers]
        for target in called:
            whole = not any(other.startswith(target + ".") for other in referred)
            child = module.get_submodule(target)
            layers[target] = self.module(child, _join(name, target)) if whole else child
        if len(called) == len(layers):
            for target in called:
                parent, _, last = target.rpartition(".")
                module.get_submodule(parent)._modules[last] = layers[target]
            return module
        return _graph_module(module, graph, layers)


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _graph_module(module: Module, graph: fx.Graph, layers: dict[str, Module]) -> Module:
    root: dict[str, Any] = dict(layers)
    for node in graph.nodes:
        if node.op == "get_attr":
            parent, _, last = node.target.rpartition(".")
            root[node.target] = getattr(module.get_submodule(parent), last)
    made = fx.GraphModule(root, graph)
    plain = {
        k: v
        for k, v in vars(module).items()
        if not k.startswith("_") and not hasattr(made, k) and not isinstance(v, Tensor)
    }
    vars(made).update(plain)
    made.meta["_user_preserved_attributes"] = plain  # GraphModule: through deepcopy, too
    for each in made.modules():
        if each is made or type(each) is Module:  # those that GraphModule made
            each.training = False
    return made


@torch.no_grad()
def _folded(conv: Any, norm: Any | None) -> tuple[Tensor, Tensor | None]:
    """weight and bias of the convolution that is `norm` after `conv`: in float64, rounded once."""
    weight, bias = conv.weight, conv.bias
    if norm is None:
        return weight.detach().clone(), None if bias is None else bias.detach().clone()
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    centre = -norm.running_mean.double()
    shift = (centre if bias is None else bias.double() + centre) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return (weight.double() * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)
