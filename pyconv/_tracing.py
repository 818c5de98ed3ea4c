"""A module's forward as a graph of its children's calls, or the reason why there is none.

torch.fx runs the forward once with stand-ins for the tensors. What that run cannot see it would get
wrong without a word, so a forward that could hold such a thing is refused.
"""

from __future__ import annotations

import ast
import copy
import dis
import inspect
import math
import operator
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from torch import Tensor, fx
from torch.nn import Module

import pyconv.nn.functional
from pyconv import ops


class Untraceable(Exception):
    """Why a module's forward cannot be written down as a graph."""


def has_hooks(module: Module) -> bool:
    """Whether a call of the module does more than its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module)


def trace(module: Module, inline: frozenset[Module]) -> fx.Graph:
    """Calls of the module's children, in order; those of `inline` are opened. Raises Untraceable."""
    _refuse_what_would_be_answered_wrongly(module)
    with _as_it_was(module) as changed:
        try:
            graph = Tracer(inline).trace(module)
        except Exception as error:
            raise Untraceable(f"its forward cannot be traced ({error})") from error
        if changed():
            raise Untraceable("its forward keeps something for later")
    for node in graph.nodes:
        node.type = None  # a postponed annotation is a string, which torch cannot pickle
    return graph


class Tracer(fx.Tracer):
    """Follows one forward; children are closed boxes, but for those of `inline`."""

    def __init__(self, inline: frozenset[Module] = frozenset()) -> None:
        super().__init__(autowrap_modules=(math, ops))  # type: ignore[arg-type]
        self._autowrap_search.append(pyconv.nn.functional)
        self._inline = inline

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return m not in self._inline

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """Writes down x += y as that; torch's would as x + y, which other names of x do not see."""


def _in_place(function: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def write_down(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write_down


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))
for _name in ("iand", "ior", "ixor", "ilshift", "irshift"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


def _refuse_what_would_be_answered_wrongly(module: Module) -> None:
    if has_hooks(module):
        raise Untraceable("it has hooks")
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise Untraceable(f"its forward has an optional argument, {parameter.name}")
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    for name in ("isinstance", "issubclass", "type", "is_tensor"):
        if code and name in _globals(code):
            raise Untraceable(f"its forward decides by {name}")


def _globals(code: CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names |= _globals(inner)
    return names


@contextmanager
def _as_it_was(module: Module) -> Iterator[Callable[[], bool]]:
    """Undoes what the body does to the module's attributes; yields whether it did anything."""
    attributes = dict(vars(module))
    containers = [
        (v, copy.copy(v)) for v in attributes.values() if isinstance(v, (list, dict, set))
    ]
    tensors = [
        (t, t._version, t.detach().clone())
        for t in (*attributes.values(), *module._buffers.values())
        if isinstance(t, Tensor)
    ]

    def changed() -> bool:
        now = vars(module)
        return (
            now.keys() != attributes.keys()
            or any(now[k] is not v for k, v in attributes.items())
            or any(_items(v) != _items(before) for v, before in containers)
            or any(t._version != version for t, version, _ in tensors)
        )

    try:
        yield changed
    finally:
        vars(module).clear()
        vars(module).update(attributes)
        for value, before in containers:
            if _items(value) != _items(before):
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(before)
        for tensor, version, values in tensors:
            if tensor._version != version:
                tensor.detach().copy_(values)


def _items(container: Any) -> list[Any]:
    """By identity: comparing two tensors, or two stand-ins, gives no bool."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return [id(value) for value in container]


def only_calls(module: Module, child: str) -> bool:
    """Whether the code of the module's class does nothing with `self.child` but call it.

    For a forward that cannot be traced, read instead: it could take a Sequential apart.
    """
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") or kind is object:
            return True
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            return False
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        made = {
            id(a) for node in ast.walk(tree) if isinstance(node, ast.Assign) for a in node.targets
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                if node.attr == child and id(node) not in called | made:
                    return False
                if node.attr in ("children", "modules", "named_children", "_modules"):
                    return False
    return True
