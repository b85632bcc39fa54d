"""Cuts the joint graph into record, plan and update (and more): pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map_only

from .packed import Fold, Packed
from .reads import Read, find_reads


@dataclass(frozen=True)
class ThreeGraphs:
    """The rewritten model.

    record ``(*inputs) -> (outputs, baseline values, conditions)``; dense ``(*inputs) -> outputs``
    is the model alone, for edits too large to gain from a baseline; plan ``(mask) -> (tables,
    masks)``; update ``(*inputs, *tables, *baseline values, *conditions) -> outputs``; commit
    takes the same and returns ``(outputs, new baseline values)``. *Conditions* are what no edit
    reaches (embeddings of time and text); static ``(*inputs) -> conditions`` makes them anew
    when those inputs are not the recorded ones.
    """

    record: GraphModule
    dense: GraphModule
    plan: GraphModule
    static: GraphModule
    update: GraphModule
    commit: GraphModule
    dynamic: tuple[bool, ...]
    """Per table: is its first size a number of active sites?"""
    mask_names: tuple[str, ...]
    """The masks that the plan returns beside its tables."""
    folds: tuple[Fold, ...]
    kept: tuple[str, ...]
    """The model's node behind each baseline value."""
    reads: tuple[Read | None, ...]
    """Per baseline value: which of its rows an update reads."""
    most_rows: int | None = None
    """Of a table, for any mask; None where shapes were not propagated."""


@dataclass(frozen=True)
class Partition:
    """Requires a packed joint graph; what crosses between stages becomes outputs and inputs."""

    def __call__(self, module: GraphModule) -> ThreeGraphs:
        packed: Packed = module.meta["packed"]
        nodes = list(module.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder" and n.meta["stage"] == "record"]
        mask = [n for n in nodes if n.op == "placeholder" and n.meta["stage"] == "plan"]
        edited = {n.meta["input"]: n for n in nodes if n.op == "placeholder" and "input" in n.meta}

        baseline = _read_by(packed.outputs, "record")
        committed = [packed.committed[node] for node in baseline]
        while len(wider := _read_by([packed.outputs, committed], "record")) > len(baseline):
            baseline = wider
            committed = [packed.committed[node] for node in baseline]
        tables = _read_by([packed.outputs, committed], "plan")
        read = _read_by([packed.outputs, committed], "static")
        static = [n for n in read if n.op != "placeholder"]
        conditions = [node.meta["recorded"] for node in static]
        used = [n.meta.get("mask") for n in nodes]
        masks = list(dict.fromkeys(mask for mask in used if isinstance(mask, Node)))
        outputs = module.graph.output_node().args[0]
        new_inputs = [edited[n] for n in inputs]
        arguments = [*new_inputs, *tables, *baseline, *static]
        update = _extract(module, arguments, packed.outputs, "Update")
        given = update.graph.find_nodes(op="placeholder")[len(inputs) :]
        remembered = given[len(tables) : len(tables) + len(baseline)]
        return ThreeGraphs(
            record=_extract(module, inputs, (outputs, baseline, conditions), "Record"),
            dense=_extract(module, inputs, outputs, "Dense"),
            plan=_extract(module, mask, (tables, masks), "Plan"),
            static=_extract(module, new_inputs, static, "Static"),
            update=update,
            commit=_extract(module, arguments, (packed.outputs, committed), "Commit"),
            dynamic=tuple(bool(n.meta.get("dynamic")) for n in tables),
            mask_names=tuple(n.name for n in masks),
            folds=tuple(packed.folds),
            kept=tuple(_of_model(node).name for node in baseline),
            reads=find_reads(remembered, given[: len(tables)]),
        )


def _needed(tree: Any, stop: Callable[[Node], bool]) -> list[Node]:
    """The nodes that ``tree`` needs, in graph order; what stands behind ``stop`` is left out."""
    seen: set[Node] = set()
    stack: list[Node] = []
    tree_map_only(Node, stack.append, tree)
    if not stack:
        return []
    graph = stack[0].graph
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if not stop(node):
                stack.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in seen]


def _read_by(tree: Any, stage: str) -> list[Node]:
    """The values of another ``stage`` that the update of ``tree`` reads."""
    nodes = _needed(tree, lambda node: node.meta["stage"] != "update")
    return [n for n in nodes if n.meta["stage"] == stage and n.op != "get_attr"]


def _of_model(node: Node) -> Node:
    """What a node that the compiler added is made of."""
    return node if "val" in node.meta else _of_model(node.all_input_nodes[0])


def _extract(module: GraphModule, inputs: list[Node], outputs: Any, name: str) -> GraphModule:
    """A graph module that computes ``outputs`` from ``inputs`` and the module's attributes."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta.update(node.meta)
    for node in _needed(outputs, copies.__contains__):
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tree_map_only(Node, copies.__getitem__, outputs))
    extracted = GraphModule(module, graph, class_name=name)
    extracted.eval()
    return extracted
