"""Values that weights alone determine become constants, made again when weights change."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .packed import Fold


@dataclass(frozen=True)
class FoldConstants:
    """Weights behind a norm of their own, a merged adapter, resized embeddings of positions: as
    nodes they would be computed by every run and kept by every baseline.

    Requires a canonical graph and ensures one. Leaves the folds under ``module.meta["folds"]``.
    Views of weights cost nothing and stay nodes.
    """

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = module.graph
        found = _constants(graph)
        folds: list[Fold] = []
        for node in found:
            if any(user not in found for user in node.users) and _is_kept(node):
                fold = _fold(f"const_{len(folds)}", node)
                weights = [operator.attrgetter(name)(module) for name in fold.weights]
                value = fold(module) if weights else None
                if value is not None and not _shares_memory(value, weights):
                    folds.append(fold)
                    _replace(module, node, fold.name, value)
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        module.meta["folds"] = folds
        module.recompile()
        return module


def _constants(graph: Graph) -> dict[Node, None]:
    """What no input reaches and nothing is drawn for, in the order of the graph."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        is_pure = node.op == "call_function" and (
            node.target is operator.getitem or isinstance(node.target, torch._ops.OpOverload)
        )
        draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "get_attr" or (
            is_pure and not draws and all(arg in found for arg in node.all_input_nodes)
        ):
            found[node] = None
    return found


def _is_kept(node: Node) -> bool:
    """A tensor, and none of the results, which are the caller's."""
    is_result = any(user.op == "output" for user in node.users)
    return node.op != "get_attr" and isinstance(node.meta.get("val"), Tensor) and not is_result


def _fold(name: str, node: Node) -> Fold:
    """``node`` and all that it needs, as a function of weights."""
    needed, stack = {node}, [node]
    while stack:
        new = [arg for arg in stack.pop().all_input_nodes if arg not in needed]
        needed.update(new)
        stack.extend(new)
    ordered = [n for n in node.graph.nodes if n in needed]
    weights = tuple(dict.fromkeys(str(n.target) for n in ordered if n.op == "get_attr"))
    graph = Graph()
    given = {weight: graph.placeholder(f"weight_{i}") for i, weight in enumerate(weights)}
    copies: dict[Node, Node] = {}
    for n in ordered:
        is_weight = n.op == "get_attr"
        copies[n] = given[str(n.target)] if is_weight else graph.node_copy(n, copies.__getitem__)
    graph.output(copies[node])
    return Fold(name, weights, _function(GraphModule(torch.nn.Module(), graph)), ())


def _function(module: GraphModule) -> Callable[..., Tensor]:
    """Which, unlike a module, a node can call."""

    def constant(*weights: Tensor) -> Tensor:
        value: Tensor = module(*weights)
        return value

    return constant


def _shares_memory(value: Tensor, weights: list[Tensor]) -> bool:
    """Also without any, on the meta device."""
    memory = {weight.untyped_storage()._cdata for weight in weights}
    return value.untyped_storage()._cdata in memory


def _replace(module: GraphModule, node: Node, name: str, value: Tensor) -> None:
    module.register_buffer(name, value, persistent=False)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta.update(node.meta)
    node.replace_all_uses_with(constant)
