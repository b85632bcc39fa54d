"""Where a model is cut so that steps of a sampling run may take over values from earlier ones."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from .base import Pass
from .facts import facts, note
from .partition import Cut
from .parts import Part, closed, reused, stream_start
from .rules import find_rule

aten = torch.ops.aten

REUSE_CUTS = (
    Cut("key", "record", ("output", "reused")),
    Cut("reuse", "record", ("output",), takes=("reused",)),
    Cut("record_key", "record", ("output", "baseline", "condition", "reused")),
    Cut("record_reuse", "record", ("output", "baseline", "condition"), takes=("reused",)),
    Cut("update_key", "update", ("output", "reused")),
    Cut("update_reuse", "update", ("output",), takes=("reused",)),
    Cut("again_key", "update", ("output", "reused")),
    Cut("again_reuse", "update", ("output",), takes=("reused",)),
    Cut("commit_key", "update", ("output", "baseline", "reused")),
    Cut("commit_reuse", "update", ("output", "baseline"), takes=("reused",)),
)
"""The dense model, the record, the update and the commit in two forms each. A *key* form also gives
the reused values; a *reuse* form takes them, and computes what does not lead to these values alone.
Reuse forms of record and commit remember only what that of the update reads."""


@dataclass(frozen=True)
class Crossing:
    """A reused value: that of the node ``end``, or what it adds to that of ``start``."""

    end: str
    start: str | None


@dataclass(frozen=True)
class Reuse(Pass):
    """Declares the cut of a part: the values of the reused nodes that others read.

    The cut is made narrow. Where it crosses a residual stream that enters the part, what is added
    to the stream on the way is reused, not the stream; and a value that is cheap to compute is, if
    its sources are smaller, or are reused anyway. Raises :class:`ConfigError` for a model that has
    no such part.
    """

    requires: ClassVar[tuple[str, ...]] = ("masks",)
    ensures: ClassVar[tuple[str, ...]] = ("reuse",)

    part: Part

    def __call__(self, module: GraphModule) -> GraphModule:
        nodes = [node for node in module.graph.nodes if facts(node).edited]
        own = reused(nodes, self.part)
        starts = _starts(nodes, own)
        own = closed(nodes, own, starts.values())
        values, instead = dict[str, dict[str, Node]](), dict[Node, Node]()
        crossing = list[Crossing]()
        for node in _cut(nodes, own):
            note(node, reused=True)
            start = starts.get(node)
            crossing.append(Crossing(node.name, None if start is None else start.name))
            value = node
            if start is not None:
                value, instead[node] = _branches(start, node)
            values[f"reused.{len(values)}"] = {"record": value}
        module.meta["values"] = {**module.meta.get("values", {}), "reused": values}
        module.meta["instead"], module.meta["crossing"] = instead, tuple(crossing)
        return module


def _starts(nodes: Sequence[Node], own: set[Node]) -> dict[Node, Node]:
    """Of each value that others read: where the residual stream to it enters ``own``."""
    found = {node: stream_start(node, own.__contains__) for node in _read_outside(nodes, own)}
    return {node: start for node, start in found.items() if start is not None and start not in own}


def _cut(nodes: Sequence[Node], own: set[Node]) -> list[Node]:
    """The values of ``own`` that others read; ``own`` loses those that others may as well make."""
    cut = _read_outside(nodes, own)
    for node in reversed(nodes):
        if node in cut and _is_cheap(node):
            fewer = _read_outside(nodes, own - {node})
            if _bytes(fewer) < _bytes(cut):
                own.remove(node)
                cut = fewer
    return cut


def _read_outside(nodes: Sequence[Node], own: set[Node]) -> list[Node]:
    return [n for n in nodes if n in own and any(user not in own for user in n.users)]


def _is_cheap(node: Node) -> bool:
    rule = find_rule(node)
    return rule is not None and rule.cheap and node.target is not operator.getitem


def _bytes(nodes: Sequence[Node]) -> int:
    return sum(node.meta["val"].nbytes for node in nodes)


def _branches(start: Node, end: Node) -> tuple[Node, Node]:
    """What is added to the residual stream from ``start`` to ``end``, and ``end`` made of it."""
    with end.graph.inserting_after(end):
        added: Node = end.graph.call_function(aten.sub.Tensor, (end, start))
    with end.graph.inserting_after(added):
        again: Node = end.graph.call_function(aten.add.Tensor, (start, added))
    for node in (added, again):
        node.meta.update(end.meta)
    return added, again
