"""The rewritten model: graphs that exchange values by name, and what is known of these values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Graph, GraphModule

from .blend import Spot
from .reads import Read


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

    def pruned(self) -> NamedGraph:
        """Without the arguments that nothing reads."""
        placeholders = zip(self.graph.find_nodes(op="placeholder"), self.inputs, strict=True)
        names = []
        for node, name in list(placeholders):
            if node.users:
                names.append(name)
            else:
                self.graph.erase_node(node)
        self.module.recompile()
        return replace(self, inputs=tuple(names))


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
    dynamic: frozenset[str] = frozenset()
    """Tables whose first size is a number of active sites."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """The model's node behind each remembered value."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Remembered values that are another one until a commit."""
    reads: Mapping[str, Read] = field(default_factory=dict)
    """Remembered values of which an update reads rows alone."""
    most_rows: int | None = None
    """Of a table, for any mask; None where shapes were not propagated."""

    def after(self, step: str, ensures: Iterable[str]) -> Graphs:
        """As the pass ``step`` left them."""
        return replace(self, holds=self.holds | set(ensures), passed=(*self.passed, step))

    def __getitem__(self, name: str) -> NamedGraph:
        return self.parts[name]
