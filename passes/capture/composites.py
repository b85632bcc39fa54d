"""Composite operators that views and copies hide behind, as the operators that they are made of."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import _should_decompose_because_unsafe_op
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

_OF_CONSTANTS = {aten.lift_fresh_copy.default, aten.detach_.default}
"""What stands around each constant that a model makes of numbers: nothing, if nobody writes."""


def is_functional(graph: Graph) -> bool:
    """Are all of its nodes operators that write nowhere?"""
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    return all(
        target is operator.getitem
        or target in _OF_CONSTANTS
        or (isinstance(target, OpOverload) and not target._schema.is_mutable)
        for target in called
    )


def decompose(module: GraphModule) -> None:
    """``reshape``, ``chunk``, ``dropout``, ``to`` and their like become what they dispatch to.

    The same that ``ExportedProgram.run_decompositions({})`` makes of a graph without writes, but
    for clones, and without another trace of it all.
    """
    graph, known, pieces = Graph(), dict[Node, Any](), Pieces()
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output(map_arg(node.args[0], known.__getitem__))
        elif node.target is operator.getitem and isinstance(known[node.args[0]], list | tuple):
            known[node] = known[node.args[0]][node.args[1]]
        elif node.target in _OF_CONSTANTS:
            known[node] = known[node.args[0]]
        elif isinstance(node.target, OpOverload) and _is_taken_apart(node.target):
            known[node] = _inlined(graph, node, pieces.of(node), known)
        else:
            known[node] = graph.node_copy(node, known.__getitem__)
    module.graph = graph


@cache
def _is_taken_apart(target: OpOverload) -> bool:
    if not target.has_kernel_for_dispatch_key(_COMPOSITE):
        return False
    may_alias = any(argument.alias_info is not None for argument in target._schema.arguments)
    return may_alias or _should_decompose_because_unsafe_op(target)


class Pieces:
    """What nodes dispatch to; those that are alike share it."""

    def __init__(self) -> None:
        self._known: dict[str, Graph] = {}

    def of(self, node: Node) -> Graph:
        """A graph of the inputs of ``node``."""
        inputs = node.all_input_nodes
        places = {one: index for index, one in enumerate(inputs)}
        values = [one.meta["val"] for one in inputs]
        key = repr(
            (node.target, map_arg((node.args, node.kwargs), places.__getitem__), _about(values))
        )
        if key not in self._known:

            def run(*values: Any) -> Any:
                own = dict(zip(inputs, values, strict=True))
                args, kwargs = map_arg((node.args, node.kwargs), own.__getitem__)
                return node.target(*args, **kwargs)  # type: ignore[operator]

            self._known[key] = make_fx(run, _TABLE)(*values).graph
        return self._known[key]


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """Without the writes to its statistics, which a model that keeps no state does not make."""
    if mean is None:
        return aten._native_batch_norm_legit.no_stats(x, weight, bias, training, momentum, eps)
    return aten._native_batch_norm_legit_no_training(x, weight, bias, mean, variance, momentum, eps)


_TABLE = {aten.native_batch_norm.default: _batch_norm}


def _about(values: list[Any]) -> list[Any]:
    return [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in values]


def _inlined(graph: Graph, node: Node, parts: Graph, known: dict[Node, Any]) -> Any:
    """The value of ``node``, by its ``parts`` in ``graph``."""
    inner: dict[Node, Any] = {}
    places = (one for one in parts.nodes if one.op == "placeholder")
    for place, one in zip(places, node.all_input_nodes, strict=True):
        inner[place] = known[one]
    about = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    for part in parts.nodes:
        if part.op == "call_function" and part.users:
            inner[part] = graph.node_copy(part, inner.__getitem__)
            inner[part].meta.update(about)
    return map_arg(parts.output_node().args[0], inner.__getitem__)
