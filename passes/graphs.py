"""The rewritten model: graphs that exchange values by name, and what is known of these values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, GraphModule

from .reads import Read


@dataclass(frozen=True, eq=False)
class NamedGraph:
    """A graph whose arguments and results have names: ``input.0``, ``table.3``, ``output.0``."""

    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def graph(self) -> Graph:
        return self.module.graph


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
    parts: Mapping[str, NamedGraph] = field(default_factory=dict)
    outputs: tuple[str | Constant, ...] = ()
    """The model's results, flattened: names of values."""
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

    def __getitem__(self, name: str) -> NamedGraph:
        return self.parts[name]
