"""Cuts the joint graph into record, plan and update (and more): pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsify.codegen import ops
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map_only

from .facts import facts
from .packed import Fold, Packed
from .reads import Read, find_reads


@dataclass(frozen=True)
class ThreeGraphs:
    """The rewritten model.

    record ``(*inputs) -> (outputs, baseline values, conditions)``; dense ``(*inputs) -> outputs``
    is the model alone, for edits too large to gain from a baseline; plan ``(mask) -> (tables,
    masks)``; update ``(*inputs, *tables, *baseline values, *conditions) -> outputs``; commit and
    again take the same: commit returns ``(outputs, new baseline values)``, and again is the
    update from such values, whose sites are of several runs. *Conditions* are what no edit
    reaches (embeddings of time and text); conditions ``(*inputs, *baseline values) -> conditions``
    makes them anew when those inputs are not the recorded ones, of the recorded noise.
    """

    record: GraphModule
    dense: GraphModule
    plan: GraphModule
    conditions: GraphModule
    update: GraphModule
    again: GraphModule
    """The update itself, where nothing that it recomputes hangs on the run."""
    commit: GraphModule
    dynamic: tuple[bool, ...]
    """Per table: is its first size a number of active sites?"""
    mask_names: tuple[str, ...]
    """The masks that the plan returns beside its tables."""
    folds: tuple[Fold, ...]
    kept: tuple[str, ...]
    """The model's node behind each baseline value."""
    copies: tuple[int, ...]
    """Per baseline value: the first that is the same one until a commit, mostly itself."""
    reads: tuple[Read | None, ...]
    """Per baseline value: which of its rows an update reads."""
    most_rows: int | None = None
    """Of a table, for any mask; None where shapes were not propagated."""

    @property
    def updates(self) -> tuple[GraphModule, ...]:
        """What computes at active sites, each once."""
        return tuple(dict.fromkeys((self.update, self.again, self.commit)))


@dataclass(frozen=True)
class Partition:
    """Requires a packed joint graph; what crosses between stages becomes outputs and inputs."""

    def __call__(self, module: GraphModule) -> ThreeGraphs:
        packed: Packed = module.meta["packed"]
        nodes = list(module.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder" and facts(n).stage == "record"]
        mask = [n for n in nodes if n.op == "placeholder" and facts(n).stage == "plan"]
        placeholders = [n for n in nodes if n.op == "placeholder"]
        edited = {facts(n).recorded: n for n in placeholders}

        baseline, drawn, made, committed = _remembered(packed)
        tables = _read_by([packed.outputs, committed], "plan")
        conditions = [facts(node).recorded for node in made]
        used = [facts(n).mask for n in nodes]
        masks = list(dict.fromkeys(mask for mask in used if mask))
        outputs = module.graph.output_node().args[0]
        new_inputs = [edited[n] for n in inputs]
        arguments = [*new_inputs, *tables, *baseline, *made]
        again = _extract(module, arguments, packed.outputs, "Again")
        given = again.graph.find_nodes(op="placeholder")[len(inputs) :]
        remembered = given[len(tables) : len(tables) + len(baseline)]
        recorded = [_itself(node) for node in baseline]
        reads = find_reads(remembered, given[: len(tables)])
        return ThreeGraphs(
            record=_extract(module, inputs, (outputs, recorded, conditions), "Record"),
            dense=_extract(module, inputs, outputs, "Dense"),
            plan=_extract(module, mask, (tables, masks), "Plan"),
            conditions=_extract(module, [*new_inputs, *baseline], made, "Conditions"),
            update=_of_one_run(again),
            again=again,
            commit=_extract(module, arguments, (packed.outputs, committed), "Commit"),
            dynamic=tuple(facts(n).dynamic for n in tables),
            mask_names=tuple(n.name for n in masks),
            folds=tuple(packed.folds),
            kept=tuple(_of_model(node).name for node in baseline),
            copies=tuple(recorded.index(node) for node in recorded),
            reads=tuple(
                None if node in drawn else read for node, read in zip(baseline, reads, strict=True)
            ),
        )


def _of_one_run(again: GraphModule) -> GraphModule:
    """The update from a recorded run: what it recomputes is right for all sites."""
    graph = Graph()
    graph.output(graph.graph_copy(again.graph, {}))
    choices = [n for n in graph.nodes if n.target is ops.of_one_run]
    if not choices:
        return again
    for node in choices:
        node.replace_all_uses_with(node.args[1])
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    update = GraphModule(again, graph, class_name="Update")
    update.eval()
    return update


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


def _remembered(packed: Packed) -> tuple[list[Node], list[Node], list[Node], list[Node]]:
    """The recorded values that are read, those that conditions read, the conditions, and what
    the recorded values become."""
    baseline: list[Node] = []
    while True:  # what one value becomes can need another
        committed = [packed.committed[node] for node in baseline]
        read = _read_by([packed.outputs, committed], "conditions")
        made = [n for n in read if n.op != "placeholder"]
        drawn = _read_by(made, "record", "conditions")
        wider = [*_read_by([packed.outputs, committed], "record"), *drawn]
        if set(wider) == set(baseline):
            return baseline, drawn, made, committed
        baseline = list(dict.fromkeys(wider))


def _read_by(tree: Any, stage: str, reader: str = "update") -> list[Node]:
    """The values of another ``stage`` that the ``reader`` of ``tree`` reads."""
    nodes = _needed(tree, lambda node: facts(node).stage != reader)
    return [n for n in nodes if facts(n).stage == stage and n.op != "get_attr"]


def _itself(node: Node) -> Node:
    """The record node whose value ``node`` stands for."""
    return node.all_input_nodes[0] if node.target is ops.same else node


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
