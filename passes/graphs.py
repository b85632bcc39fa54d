"""The rewritten model: graphs that exchange values by name, and what is known of these values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from torch.fx import Graph, GraphModule, Node

from .blend import Spot


@dataclass(frozen=True, eq=False)
class NamedGraph:
    """A graph whose arguments and results have names: ``input.0``, ``table.3``, ``output.0``."""

    module: GraphModule
    stage: str
    """Of its nodes: :data:`.partition.STAGES`."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def graph(self) -> Graph:
        return self.module.graph

    def attributes(self) -> dict[str, Any]:
        """What it reads of its module, by name."""
        names = [str(node.target) for node in self.graph.find_nodes(op="get_attr")]
        return {name: attrgetter(name)(self.module) for name in names}

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Its results for these arguments, of which it takes those that it reads."""
        self.module.recompile()  # passes write to the graph alone
        results = self.module(*(values[name] for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))

    def named(self, kind: str) -> dict[Node, str]:
        """The arguments of this kind, with their names."""
        return {node: name for node, name in self._arguments() if name.startswith(f"{kind}.")}

    def gives(self, kind: str) -> bool:
        """Are there results of this kind?"""
        return bool(self.results(kind))

    def results(self, kind: str) -> tuple[str, ...]:
        """The names of those of this kind."""
        return tuple(name for name in self.outputs if name.startswith(f"{kind}."))

    def _arguments(self) -> list[tuple[Node, str]]:
        return list(zip(self.graph.find_nodes(op="placeholder"), self.inputs, strict=True))

    def pruned(self) -> NamedGraph:
        """Without the arguments that nothing reads."""
        names = []
        for node, name in self._arguments():
            if node.users:
                names.append(name)
            else:
                self.graph.erase_node(node)
        return replace(self, inputs=tuple(names))


@dataclass(frozen=True)
class Read:
    """Rows of axis ``dim`` of a remembered value, at the sites that some tables name."""

    dim: int
    tables: tuple[str, ...]

    def both(self, other: Read) -> Read | None:
        """What this and another graph read."""
        tables = tuple(dict.fromkeys((*self.tables, *other.tables)))
        return Read(self.dim, tables) if self.dim == other.dim else None


@dataclass(frozen=True)
class Row:
    """Where the sites of ``table`` stand among those of the tables ``kept``."""

    table: str
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Constant:
    """A result of the model that is no tensor."""

    value: Any


@dataclass(frozen=True, eq=False)
class Graphs:
    """The joint graph, and the graphs that :class:`.Partition` cuts from it."""

    joint: GraphModule
    holds: frozenset[str] = frozenset()
    """What the passes so far ensure."""
    passed: tuple[str, ...] = ()
    """The names of these passes."""
    parts: Mapping[str, NamedGraph] = field(default_factory=dict)
    inputs: tuple[Spot | None, ...] = ()
    """How the inputs of a call, flattened, lie on their grid; None for what no edit changes."""
    outputs: tuple[str | Constant, ...] = ()
    """The model's results, flattened: names of values."""
    results: Mapping[str, Spot | None] = field(default_factory=dict)
    """How these values lie on their grid."""
    dynamic: Mapping[str, int] = field(default_factory=dict)
    """The axis of a value whose size is a number of sites: those of tables, and of what updates
    read rows of."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """The model's node behind each remembered value."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Remembered values that are another one until a commit."""
    reads: Mapping[str, Read] = field(default_factory=dict)
    """Remembered values of which updates read rows alone."""
    rows: Mapping[str, Row] = field(default_factory=dict)
    """The tables by which they do."""
    most_rows: int | None = None
    """Of these, for any mask; None where shapes were not propagated."""

    def after(self, step: str, ensures: Iterable[str]) -> Graphs:
        """As the pass ``step`` left them."""
        return replace(self, holds=self.holds | set(ensures), passed=(*self.passed, step))

    def __getitem__(self, name: str) -> NamedGraph:
        return self.parts[name]
