"""Cuts the joint graph into graphs that exchange values by name."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sparsify.codegen import ops
from sparsify.codegen.errors import CaptureError
from torch.fx import Graph, GraphModule, Node

from .base import Pass
from .blend import Spot, mask_name
from .evaluate import Evaluate, evaluated
from .facts import ANYWHERE, facts, layout_of
from .graphs import Constant, Graphs, NamedGraph
from .packing.packed import Packed


@dataclass(frozen=True)
class Stage:
    """Nodes that run together. What they read of another stage becomes an argument, and a result
    of that stage's graphs, called by the other's ``kind``."""

    name: str
    reads: tuple[str, ...]
    kind: str


STAGES = (
    Stage("constants", (), "constant"),
    Stage("plan", ("constants",), "table"),
    Stage("record", ("constants",), "baseline"),
    Stage("conditions", ("constants", "record"), "condition"),
    Stage("update", ("constants", "plan", "record", "conditions"), "current"),
)


@dataclass(frozen=True)
class Cut:
    """A graph: the nodes of ``stage`` that some kinds of values need.

    A value of another stage is given in the form that it has in this one: what stands for a
    recorded output in the update, and for a condition in the record. Values of kinds that a graph
    ``takes`` are arguments, though its own stage computes them.
    """

    name: str
    stage: str
    gives: tuple[str, ...]
    takes: tuple[str, ...] = ()


CUTS = (
    Cut("constants", "constants", ("constant",)),
    Cut("plan", "plan", ("table", "mask")),
    Cut("record", "record", ("output", "baseline", "condition")),
    Cut("dense", "record", ("output",)),
    Cut("conditions", "conditions", ("condition",)),
    Cut("update", "update", ("output",)),
    Cut("again", "update", ("output",)),
    Cut("commit", "update", ("output", "baseline")),
)
"""record ``inputs -> outputs, baseline values, conditions``; dense is the model alone, for edits
too large to gain from a baseline; plan ``mask -> tables, masks``; update ``inputs, tables, baseline
values, conditions -> outputs``, again the same from committed values, whose sites are of several
runs; commit also returns the new baseline values. *Conditions* are what no edit reaches
(embeddings of time and text); their graph makes them again when those inputs are not the recorded
ones, of the recorded noise. *Constants* are made from weights alone."""


@dataclass(frozen=True)
class Partition(Pass):
    """What crosses between stages becomes results and arguments; nothing is listed by hand."""

    requires: ClassVar[tuple[str, ...]] = ("packed",)
    ensures: ClassVar[tuple[str, ...]] = ("graphs",)

    stages: tuple[Stage, ...] = STAGES
    cuts: tuple[Cut, ...] = CUTS
    evaluate: Evaluate = evaluated

    def apply(self, graphs: Graphs) -> Graphs:
        crossing = _Crossing(graphs.joint, self)
        crossing.find()
        parts = crossing.extracted()
        baseline, tables = crossing.nodes("baseline"), crossing.nodes("table").items()
        return replace(
            graphs,
            parts=parts,
            inputs=tuple(map(Spot.of, _recorded_inputs(graphs.joint.graph))),
            outputs=crossing.outputs,
            results=crossing.spots,
            dynamic={name: 0 for name, node in tables if facts(node).dynamic} | crossing.packed(),
            kept={name: _of_model(node).name for name, node in baseline.items()},
            copies=crossing.copies,
        )


Value = Node | Mapping[str, Node]
"""A value that crosses: the node that computes it, or the one that does so in each stage."""


class _Crossing:
    """The values that cross between stages, by kind and name; found by what the cuts need."""

    def __init__(self, joint: GraphModule, partition: Partition) -> None:
        self._joint, self._cuts, self._evaluate = joint, partition.cuts, partition.evaluate
        self._packed: Packed = joint.meta["packed"]
        self._kinds = {stage.name: stage.kind for stage in partition.stages}
        self._inputs = _inputs(joint.graph)
        self._values: dict[str, dict[str, Value]] = {kind: {} for kind in self._kinds.values()}
        self._values["output"], self.outputs = self._leaves()
        masks = dict.fromkeys(mask for n in joint.graph.nodes if (mask := facts(n).mask))
        self._values["mask"] = {mask_name(node): node for node in masks}
        self._values |= joint.meta.get("values", {})  # of kinds that other passes declare
        own: dict[Node, Node] = joint.meta.get("instead", {})
        current = self._packed.current
        self._instead = own | {current(old): current(new) for old, new in own.items()}
        """What graphs that take such values compute in the place of a node."""
        self._products: dict[Node, Node] = joint.meta.get("products", {})
        """What graphs of the record stage do."""
        self.copies: dict[str, str] = {}
        """Remembered values that are another one until a commit."""

    def _leaves(self) -> tuple[dict[str, Value], tuple[str | Constant, ...]]:
        """The results of the model that are tensors, and all of them."""
        leaves: Any = self._joint.graph.output_node().args[0]
        current = iter(self._packed.outputs)
        names = [f"output.{i}" for i in range(len(leaves))]
        pairs = list(zip(names, leaves, strict=True))
        values = {n: {"record": x, "update": next(current)} for n, x in pairs if _is_node(x)}
        self.spots = {name: Spot.of(forms["record"]) for name, forms in values.items()}
        return {**values}, tuple(n if _is_node(x) else Constant(x) for n, x in pairs)

    def find(self) -> None:
        """What one graph needs can be a result of another that then needs more."""
        found: dict[str, dict[Node, None]] = {kind: {} for kind in self._kinds.values()}
        count = -1
        while count < (count := sum(map(len, found.values()))):
            for cut in self._cuts:
                for node in self._needed_for(cut, self._results(cut)):
                    if self._crosses(node, cut):
                        found[self._kinds[facts(node).stage]][node] = None
            self._number(found)

    def _number(self, found: Mapping[str, Mapping[Node, None]]) -> None:
        place = {node: index for index, node in enumerate(self._joint.graph.nodes)}
        for kind, nodes in found.items():
            ordered = sorted(nodes, key=place.__getitem__)
            self._values[kind] = {f"{kind}.{i}": node for i, node in enumerate(ordered)}
        self.copies = _copies(self.nodes("baseline"))

    def nodes(self, kind: str) -> dict[str, Node]:
        """The values of a kind that crosses, by name."""
        return {name: v for name, v in self._values[kind].items() if isinstance(v, Node)}

    def packed(self) -> dict[str, int]:
        """The axis of sites of values that updates give to each other."""
        return {
            name: layout_of(value["record"]).site_dim
            for values in self._values.values()
            for name, value in values.items()
            if isinstance(value, Mapping) and name not in self.spots
            if facts(value["record"]).mask is not None
        }

    def _crosses(self, node: Node, cut: Cut) -> bool:
        """Is it another stage's, and no input of the call?"""
        return facts(node).stage not in (cut.stage, ANYWHERE) and not self._is_input(node, cut)

    def _is_input(self, node: Node, cut: Cut) -> bool:
        if node.op != "placeholder":
            return False
        return facts(node).recorded is not None or facts(node).stage == cut.stage

    def _in(self, cut: Cut, kinds: Iterable[str]) -> dict[str, Node]:
        """The nodes for the values of these kinds in the stage of ``cut``, by name."""
        values = {name: v for kind in kinds for name, v in self._values[kind].items()}
        forms = {name: self._form(value, cut.stage) for name, value in values.items()}
        if cut.stage != "record":
            return forms
        return {name: _itself(node) for name, node in forms.items() if name not in self.copies}

    def _form(self, value: Value, stage: str) -> Node:
        if not isinstance(value, Node):
            return value.get(stage) or self._packed.current(value["record"])
        if stage == "record":
            return facts(value).recorded or value
        return value if facts(value).stage == stage else self._packed.committed(value)

    def _results(self, cut: Cut) -> dict[str, Node]:
        """What a graph gives; of what is remembered, one that takes values of its own stage gives
        what graphs that take the same ones read."""
        is_part = cut.takes and "baseline" in cut.gives
        return self._given(cut, self._read_with(cut) if is_part else None)

    def _given(self, cut: Cut, read: Container[str] | None) -> dict[str, Node]:
        results, instead = self._in(cut, cut.gives), self._instead_in(cut)
        if read is not None and "baseline" in cut.gives:
            results = {n: x for n, x in results.items() if n in read or n.startswith("output.")}
        return {name: instead.get(node, node) for name, node in results.items()}

    def _instead_in(self, cut: Cut) -> Mapping[Node, Node]:
        own: Mapping[Node, Node] = self._instead if cut.takes else {}
        if cut.stage != "record":
            return own
        taken = set(self._in(cut, cut.takes).values())
        products = {old: new for old, new in self._products.items() if old not in taken}
        return products | {old: products.get(new, new) for old, new in own.items()}

    def _read_with(self, cut: Cut) -> set[str]:
        """The values of others that graphs read which take the same ones, or may run before; to
        remember one, a commit may read more."""
        others = [c for c in self._cuts if c.takes == cut.takes or c.stage == "conditions"]
        read, count = set[str](), -1
        while count < (count := len(read)):
            for other in others:
                needed = self._needed_for(other, self._given(other, read))
                nodes = {node for node in needed if self._crosses(node, other)}
                kinds = (self.nodes(kind) for kind in ("baseline", "condition"))
                read |= {name for own in kinds for name, node in own.items() if node in nodes}
            read |= {self.copies[name] for name in read if name in self.copies}
        return read

    def _needed_for(self, cut: Cut, results: Mapping[str, Node]) -> list[Node]:
        taken, instead = set(self._in(cut, cut.takes).values()), self._instead_in(cut)
        return _needed(results.values(), lambda n: n in taken or self._crosses(n, cut), instead)

    def extracted(self) -> dict[str, NamedGraph]:
        """The graphs, constants first: the others have them as attributes."""
        parts: dict[str, NamedGraph] = {}
        for cut in self._cuts:
            parts[cut.name] = part = self._extracted(cut)
            if cut.stage == "constants":
                for name, value in zip(part.outputs, self._evaluate(part), strict=True):
                    if hasattr(self._joint, attribute(name)):
                        raise CaptureError(
                            f"the model has an attribute {attribute(name)!r}: give it another name"
                        )
                    self._joint.register_buffer(attribute(name), value, persistent=False)
        return parts

    def _arguments(self, cut: Cut, needed: Iterable[Node]) -> dict[Node, str]:
        """The nodes that are given to a graph, with their names; inputs of the call first."""
        taken = {node: name for name, node in self._in(cut, cut.takes).items()}
        names = {
            node: name for kind in self._kinds.values() for name, node in self.nodes(kind).items()
        }
        order = ["input", *self._kinds.values()]
        arguments = dict[Node, str]()
        if cut.stage == "record":  # the model as it is called, whatever it reads
            arguments = {node: self._inputs[node] for node in _recorded_inputs(self._joint.graph)}
        for node in needed:
            if node in taken or self._is_input(node, cut):
                arguments[node] = taken.get(node) or self._inputs[node]
            elif self._crosses(node, cut):
                arguments[node] = names[node]

        def rank(pair: tuple[Node, str]) -> tuple[int, int]:
            kind, _, number = pair[1].partition(".")
            return (order.index(kind) if kind in order else len(order)), int(number or 0)

        return dict(sorted(arguments.items(), key=rank))

    def _extracted(self, cut: Cut) -> NamedGraph:
        results = self._results(cut)
        needed = self._needed_for(cut, results)
        arguments, graph, copies = self._arguments(cut, needed), Graph(), dict[Node, Node]()
        for node, name in arguments.items():
            is_constant = name.startswith("constant.")
            copies[node] = (
                graph.get_attr(attribute(name)) if is_constant else graph.placeholder(node.name)
            )
            copies[node].meta.update(node.meta)
        instead = self._instead_in(cut)
        for node in needed:
            if node not in copies:
                copies[node] = graph.node_copy(node, lambda n: copies[instead.get(n, n)])
        graph.output(tuple(copies[node] for node in results.values()))
        module = GraphModule(self._joint, graph, class_name=cut.name.capitalize())
        module.eval()
        given = (name for name in arguments.values() if not name.startswith("constant."))
        return NamedGraph(module, cut.stage, tuple(given), tuple(results))


def _inputs(graph: Graph) -> dict[Node, str]:
    """The names of placeholders: the mask, and inputs, an edited one as the recorded one."""
    names = {node: f"input.{i}" for i, node in enumerate(_recorded_inputs(graph))}
    for node in graph.find_nodes(op="placeholder"):
        if node not in names:
            own = facts(node).recorded
            names[node] = names[own] if own else "mask"
    return names


def _recorded_inputs(graph: Graph) -> list[Node]:
    return [n for n in graph.find_nodes(op="placeholder") if facts(n).stage == "record"]


def attribute(name: str) -> str:
    """Of a graph module: where it has a constant."""
    return name.replace("constant.", "_const_")


def _is_node(leaf: object) -> bool:
    return isinstance(leaf, Node)


def _needed(
    results: Iterable[Node], stop: Callable[[Node], bool], instead: Mapping[Node, Node]
) -> list[Node]:
    """The nodes that ``results`` need, in graph order; what stands behind ``stop`` is left out, and
    some are read ``instead`` of others."""
    seen: set[Node] = set()
    stack = list(results)
    if not stack:
        return []
    graph = stack[0].graph
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if not stop(node):
                stack.extend(instead.get(arg, arg) for arg in node.all_input_nodes)
    return [node for node in graph.nodes if node in seen]


def _itself(node: Node) -> Node:
    """The record node whose value ``node`` stands for."""
    return node.all_input_nodes[0] if node.target is ops.same else node


def _of_model(node: Node) -> Node:
    """What a node that the compiler added is made of."""
    return node if "val" in node.meta else _of_model(node.all_input_nodes[0])


def _copies(baseline: Mapping[str, Node]) -> dict[str, str]:
    first: dict[Node, str] = {}
    names = {name: first.setdefault(_itself(node), name) for name, node in baseline.items()}
    return {name: other for name, other in names.items() if name != other}
