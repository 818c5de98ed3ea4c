"""Chains of layers that one fused layer can stand for, found in the graph of a module's forward."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import Module, ModuleDict, ModuleList, Sequential

import pyconv.nn
from pyconv._tracing import Untraceable, has_hooks, trace
from pyconv.nn.batch_norm_relu import ceiling_of
from pyconv.nn.fused import FusedConv2d
from pyconv.ops._check import DTYPES

NORMS = (
    torch.nn.BatchNorm2d,
    torch.nn.SyncBatchNorm,
    pyconv.nn.BatchNorm2d,
    pyconv.nn.SyncBatchNorm,
    pyconv.nn.BatchNormReLU2d,
)
_CONVS = (torch.nn.Conv2d, pyconv.nn.Conv2d)
_WRITING_ADDS = (operator.iadd, "add_")
_ADDS = (operator.add, torch.add, "add", *_WRITING_ADDS)
_RELUS = (
    *(torch.relu, torch.relu_, torch.nn.functional.relu, torch.nn.functional.relu_),
    *("relu", "relu_"),
)

# --- which layers


def is_layer(module: Module) -> bool:
    """One of torch's own layers or pyconv's: nothing inside it is looked at."""
    ours = type(module).__module__.startswith(("torch.nn.modules.", "torch.ao.", "pyconv.nn."))
    return ours and not isinstance(module, (Sequential, ModuleList, ModuleDict))


def is_conv(module: Module) -> bool:
    """A convolution that a chain can start with; a fused one too, while it ends in a sum."""
    if type(module) is FusedConv2d:
        return not module.relu and not has_hooks(module)
    return type(module) in _CONVS and not has_hooks(module) and module.weight.dtype in DTYPES


def _is_norm(module: Any, conv: Any) -> bool:
    return (
        type(module) in NORMS
        and not has_hooks(module)
        and not module.training
        and module.running_mean is not None
        and module.num_features == conv.out_channels
    )


# --- the graph of a forward


def traced(module: Module) -> fx.Graph:
    """The graph of the module's forward; raises Untraceable.

    A Sequential whose result is added to something is opened, so that its last convolution can take
    the sum.
    """
    inline: frozenset[Module] = frozenset()
    while True:
        graph = trace(module, inline)
        more = frozenset(_added_sequentials(graph, module)) - inline
        if not more:
            return graph
        inline |= more


def _added_sequentials(graph: fx.Graph, root: Module) -> Iterator[Module]:
    """Sequentials that end in a convolution and whose results go into a sum."""
    for node in graph.nodes:
        if not _calls(node, _ADDS):
            continue
        calls = [a for a in node.args if isinstance(a, fx.Node) and a.op == "call_module"]
        layers = [root.get_submodule(str(a.target)) for a in calls]
        if any(is_conv(layer) or type(layer) in NORMS for layer in layers):
            continue  # the sum has its convolution
        for call, layer in reversed(list(zip(calls, layers))):
            if len(call.users) == 1 and _ends_in_conv(layer):
                yield layer
                break


def _ends_in_conv(module: Module) -> bool:
    if not isinstance(module, Sequential) or type(module).forward is not Sequential.forward:
        return is_conv(module)
    layers = list(module)
    if layers and type(layers[-1]) in NORMS:
        layers.pop()
    return bool(layers) and not has_hooks(module) and _ends_in_conv(layers[-1])


# --- chains in it


@dataclass
class Chain:
    """conv [norm] [+ residual] [relu or relu6], each read by nothing but the next."""

    nodes: list[fx.Node]
    labels: list[str]
    conv: Any
    norm: Any | None = None
    residual: fx.Node | None = None
    ceiling: float | None = None  # of a relu, infinity without one; None without a relu

    def target(self, graph: fx.Graph, taken: dict[str, Module]) -> str:
        """Where the fused layer goes: beside the convolution, under the names of what it joins."""
        parent, dot, _ = str(self.nodes[0].target).rpartition(".")
        called = (str(node.target) for node in graph.nodes if node.op == "call_module")
        if any(f"{parent}.".startswith(f"{target}.") for target in called):
            parent, dot = parent.replace(".", "_"), "_"  # one more child would change what it does
        name = target = parent + dot + "_".join(self.labels).replace(" + ", "_")
        count = 1
        while target in taken:
            count += 1
            target = f"{name}_{count}"
        return target

    def replace(self, graph: fx.Graph, target: str) -> None:
        """Without a residual in the place of the convolution, else of the chain's last node."""
        first, last = self.nodes[0], self.nodes[-1]
        x = first.args[0]
        with (
            graph.inserting_before(first) if self.residual is None else graph.inserting_after(last)
        ):
            args = (x,) if self.residual is None else (x, self.residual)
            new = graph.call_module(target, args)
        last.replace_all_uses_with(new)
        for node in reversed(self.nodes):
            graph.erase_node(node)


def first(graph: fx.Graph, root: Module, made: dict[str, Module]) -> Chain | None:
    """The first chain of two layers or more; `made` are the fused layers already in the graph."""
    for node in graph.nodes:
        if node.op != "call_module" or node.target in made:
            continue
        conv = root.get_submodule(node.target)
        if is_conv(conv) and len(node.args) == 1 and not node.kwargs:
            chain = _from(node, conv, graph, root, made)
            if len(chain.nodes) > 1:
                return chain
    return None


def _from(
    node: fx.Node, conv: Any, graph: fx.Graph, root: Module, made: dict[str, Module]
) -> Chain:
    parent = str(node.target).rpartition(".")[0]

    def label(n: fx.Node) -> str:
        return str(n.target).removeprefix(f"{parent}.").replace(".", "_")

    chain = Chain([node], [getattr(conv, "stands_for", "") or label(node)], conv)
    reader = _only_reader(node)
    if reader is not None and reader.op == "call_module" and reader.target not in made:
        layer = root.get_submodule(str(reader.target))
        if type(conv) is not FusedConv2d and _is_norm(layer, conv) and reader.args == (node,):
            chain.nodes.append(reader)
            chain.labels.append(label(reader))
            chain.norm = layer
            if type(layer) is pyconv.nn.BatchNormReLU2d:
                chain.ceiling = layer.ceiling
                return chain
            reader = _only_reader(reader)
    if reader is not None and (residual := _added(reader, chain.nodes[-1])) is not None:
        end = _only_reader(reader)
        end = end if end is not None and _ceiling(end, root, made) is not None else reader
        if _can_move(node, end, {*chain.nodes, reader}, graph, root, made):
            chain.nodes.append(reader)
            chain.labels.append("add")
            chain.residual = residual
            reader = _only_reader(reader)
        else:
            reader = None
    if reader is not None and (ceiling := _ceiling(reader, root, made)) is not None:
        chain.nodes.append(reader)
        chain.labels.append(label(reader) if reader.op == "call_module" else "relu")
        chain.ceiling = ceiling
    return chain


def _calls(node: fx.Node, functions: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in functions


def _only_reader(node: fx.Node) -> fx.Node | None:
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return reader if reader is not None and reader.op != "output" else None


def _ceiling(node: fx.Node, root: Module, made: dict[str, Module]) -> float | None:
    """What this ReLU or ReLU6 never exceeds, infinity of the first; None of anything else."""
    if node.op == "call_module":
        layer = None if node.target in made else root.get_submodule(str(node.target))
        return None if layer is None or has_hooks(layer) else ceiling_of(layer)
    if _calls(node, (torch.nn.functional.relu6,)):
        return 6.0
    return math.inf if _calls(node, _RELUS) else None


def _added(node: fx.Node, to: fx.Node) -> fx.Node | None:
    """The other operand, if `node` adds something to `to` and writes into nothing else."""
    if not _calls(node, _ADDS) or node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    if a is not to and node.target not in _WRITING_ADDS:
        a, b = b, a
    return b if a is to and isinstance(b, fx.Node) and b is not to else None


# --- may a convolution run later than it did?


def _can_move(
    conv: fx.Node, end: fx.Node, chain: set[fx.Node], graph: fx.Graph, root: Module, made: Any
) -> bool:
    """Whether nothing between may write into what the convolution reads."""
    between, inside = [], False
    for node in graph.nodes:
        inside = (inside or node is conv) and node is not end
        if inside and node not in chain:
            between.append(node)
    return not any(_may_write(node, root, made) for node in between)


def _may_write(node: fx.Node, root: Module, made: dict[str, Module]) -> bool:
    if node.op == "call_module":
        return node.target not in made and _module_may_write(root.get_submodule(str(node.target)))
    if node.op == "call_method":
        return str(node.target).endswith("_") or "out" in node.kwargs
    if node.op != "call_function":
        return False
    name, home = getattr(node.target, "__name__", "_"), getattr(node.target, "__module__", None)
    known = (home or "torch").split(".")[0] in ("torch", "pyconv", "_operator", "math", "builtins")
    in_place = (
        name.endswith("_") or (home == "_operator" and name.startswith("i")) or name == "setitem"
    )
    flags = (*node.args, node.kwargs.get("inplace"))
    return not known or in_place or "out" in node.kwargs or any(flag is True for flag in flags)


def _module_may_write(module: Module) -> bool:
    if has_hooks(module):
        return True
    if is_layer(module):
        return bool(getattr(module, "inplace", False))
    try:
        graph = traced(module)
    except Untraceable:
        return True
    return any(_may_write(node, module, {}) for node in graph.nodes)
