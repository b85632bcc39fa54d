"""Rows of remembered values are read through tables of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from sparsify.codegen import ops
from torch.fx import Node

from .base import Pass
from .facts import note
from .graphs import Graphs, NamedGraph, Read, Row


@dataclass(frozen=True)
class ReadRows(Pass):
    """Updates name the rows that they read of a remembered value by other tables than the sites of
    anything else. What a restricted baseline has left of a value stands elsewhere, and updates take
    it with other tables in the place of these."""

    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    ensures: ClassVar[tuple[str, ...]] = ("rows",)
    graphs: ClassVar[tuple[str, ...]] = ("update", "plan")

    def apply(self, graphs: Graphs) -> Graphs:
        reads = _reads(graphs)
        rows: dict[Row, str] = {}
        done: dict[NamedGraph, NamedGraph] = {}  # one graph may have two names
        for part in graphs.parts.values():
            if part.stage == "update" and not part.gives("baseline"):
                done[part] = done.get(part) or _rewritten(part, reads, rows)
        sizes = {name: read.dim for name, read in reads.items()} | dict.fromkeys(rows.values(), 0)
        plan = graphs["plan"]
        done[plan] = _with_rows(plan, rows)
        return replace(
            graphs,
            parts={name: done.get(part, part) for name, part in graphs.parts.items()},
            dynamic={**graphs.dynamic, **sizes},
            reads=reads,
            rows={name: row for row, name in rows.items()},
        )


def _reads(graphs: Graphs) -> dict[str, Read]:
    """What all graphs together read that serve a restricted baseline: commits do not. Two values
    that are one in a recorded baseline are restricted alike."""
    found: dict[str, Read | None] = {}
    for part in graphs.parts.values():
        if not part.gives("baseline"):
            for node, name in part.named("baseline").items():
                first, read = graphs.copies.get(name, name), _read(node, part.named("table"))
                known = found.setdefault(first, read)
                found[first] = known and read and known.both(read)
    every = {name: found.get(graphs.copies.get(name, name)) for name in graphs.kept}
    return {name: read for name, read in every.items() if read}


def _read(value: Node, tables: Mapping[Node, str]) -> Read | None:
    """What a graph reads of ``value``, a placeholder; None if it reads all."""
    dims, used = set[Any](), dict[str, None]()
    for user in value.users:
        if user.target not in (ops.take_rows, ops.take) or user.args[0] is not value:
            return None
        if (table := _table(user.args[1])) not in tables:
            return None
        used[tables[table]] = None
        dims.add(1 if user.target is ops.take_rows else user.args[2])
    return Read(dims.pop(), tuple(used)) if len(dims) == 1 else None


def _table(sites: Any) -> Node:
    """The table behind a node that only declares its size."""
    table: Node = sites if sites.target is not ops.same_sites else _table(sites.args[0])
    return table


def _rewritten(part: NamedGraph, reads: Mapping[str, Read], rows: dict[Row, str]) -> NamedGraph:
    """``part`` with an argument for each of ``rows``, to which it adds."""
    tables, arguments = part.named("table"), _Arguments(part)
    ties: dict[tuple[Node, Node], Node] = {}
    for value, name in part.named("baseline").items():
        for user in tuple(value.users) if name in reads else ():
            sites: Any = user.args[1]
            table = _table(sites)
            row = Row(tables[table], reads[name].tables)
            own = arguments.named(rows.setdefault(row, f"row.{len(rows)}"), table)
            if (own, sites) not in ties:
                ties[own, sites] = _tied(own, sites)
            user.update_arg(1, ties[own, sites])
    for (own, sites), tie in ties.items():
        if list(sites.users) == [tie]:  # nothing else has as many rows
            tie.replace_all_uses_with(own)
            part.graph.erase_node(tie)
    return replace(part, inputs=tuple(arguments.names)).pruned()


def _tied(row: Node, sites: Node) -> Node:
    """``row``, with as many entries as there are ``sites``."""
    with row.graph.inserting_after(row if sites.op == "placeholder" else sites):
        tie: Node = row.graph.call_function(ops.same_sites, (row, sites))
    note(tie, stage="update")
    return tie


def _with_rows(plan: NamedGraph, rows: Mapping[Row, str]) -> NamedGraph:
    """The plan, which also gives these: in a whole baseline each row stands where its site is."""
    output = plan.graph.output_node()
    (results,) = output.args
    assert isinstance(results, tuple)
    nodes = dict(zip(plan.outputs, results, strict=True))
    with plan.graph.inserting_before(output):
        # One memory, but no tensor twice, nor a view: a compiled update would hold for that alone.
        made = [
            plan.graph.call_function(torch.ops.aten.detach.default, (nodes[row.table],))
            for row in rows
        ]
    output.args = ((*results, *made),)
    return replace(plan, outputs=(*plan.outputs, *rows.values()))


class _Arguments:
    """Those of a graph, and further ones."""

    def __init__(self, part: NamedGraph) -> None:
        placeholders: list[Node] = part.graph.find_nodes(op="placeholder")
        self.names = dict(zip(part.inputs, placeholders, strict=True))
        self._last = placeholders[-1]

    def named(self, name: str, like: Node) -> Node:
        if name not in self.names:
            graph = self._last.graph
            with graph.inserting_after(self._last):
                self._last = graph.placeholder(name.replace(".", "_"))
            self._last.meta.update(like.meta)
            self.names[name] = self._last
        return self.names[name]
