"""A graph as JSON, for another process and for files: nothing of it is unpickled."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, Node

from ..errors import CompileError

Json = Any
_PLAIN = bool, int, float, str, type(None)
_NAMED = torch.dtype, torch.layout, torch.memory_format
_GROUPS: dict[type[Any], str] = {tuple: "tuple", list: "list", torch.Size: "tuple"}


def to_json(graph: Graph) -> Json:
    """``graph``, which reads no attributes. Raises :class:`CompileError` for what has no name that
    another process finds, or no form in JSON."""
    nodes = []
    for node in graph.nodes:
        try:
            nodes.append(
                {
                    "name": node.name,
                    "op": node.op,
                    "target": _name(node),
                    "args": _written(node.args),
                    "kwargs": _written(node.kwargs),
                }
            )
        except LookupError as error:
            raise CompileError(f"{node.name} has no form in a file: {error}") from None
    return nodes


def from_json(nodes: Json) -> Graph:
    """What :func:`to_json` wrote."""
    graph, known = Graph(), dict[str, Node]()
    for own in nodes:
        args, kwargs = (_read(own[key], known) for key in ("args", "kwargs"))
        if own["op"] == "output":
            graph.output(*args)
        else:
            target = _target(own["op"], own["target"])
            known[own["name"]] = graph.create_node(own["op"], target, args, kwargs, own["name"])
    return graph


def _name(node: Node) -> str:
    target = node.target
    if isinstance(target, str):
        if node.op == "get_attr":
            raise LookupError(f"it reads the attribute {target}")
        return target
    if isinstance(target, OpOverload | OpOverloadPacket):
        return f"torch.ops:{target}"
    name = f"{target.__module__}:{target.__qualname__}"
    if _found(name) is not target:
        raise LookupError(f"{target} is not found by its name {name}")
    return name


def _target(op: str, name: str) -> Callable[..., Any] | str:
    return _found(name) if op == "call_function" else name


def _found(name: str) -> Any:
    """Raises :class:`LookupError`."""
    module, _, path = name.partition(":")
    try:
        start = torch.ops if module == "torch.ops" else import_module(module)
        return reduce(getattr, path.split("."), start)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise LookupError(f"{name}: {error}") from None


def _written(value: Any) -> Json:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return value
    if isinstance(value, _NAMED):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, slice):
        return {"slice": [_written(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": None}
    if isinstance(value, Mapping):
        return {"dict": {key: _written(own) for key, own in value.items()}}
    for kind, name in _GROUPS.items():
        if isinstance(value, kind) and not hasattr(value, "_fields"):
            return {name: [_written(own) for own in value]}
    raise LookupError(f"{type(value).__name__} among its arguments")


def _read(value: Json, known: Mapping[str, Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, own),) = value.items()
    reads: dict[str, Callable[[Any], Any]] = {
        "node": known.__getitem__,
        "float": float,
        "torch": lambda name: operator.attrgetter(name)(torch),
        "device": torch.device,
        "slice": lambda parts: slice(*(_read(part, known) for part in parts)),
        "ellipsis": lambda _: Ellipsis,
        "dict": lambda pairs: {key: _read(one, known) for key, one in pairs.items()},
        "tuple": lambda parts: tuple(_read(part, known) for part in parts),
        "list": lambda parts: [_read(part, known) for part in parts],
    }
    return reads[kind](own)
