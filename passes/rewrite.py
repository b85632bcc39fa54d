"""Rewrites, declared by the operators that they match and applied until none applies.

A rewrite is a function of a node that returns the node to stand for it, or raises
:class:`Unmatched` with the reason why it does not apply::

    @rewrite(aten.narrow.default)
    def narrow(node: Node) -> Node: ...
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from sparsify.codegen.errors import RewriteError
from torch.fx import Graph, Node

from .facts import note
from .layout import Unmatched

_LONGEST_CHAIN = 100
"""Forms of forms that one node may go through; networks have fewer than ten."""


@dataclass(frozen=True)
class ResultOf:
    """Matches the results of an operator that has several: those are nodes of their own."""

    operator: Any

    def __str__(self) -> str:
        return f"result of {self.operator}"


@dataclass(frozen=True)
class Rewrite:
    """``operators`` are overloads, packets (all of their overloads) and :class:`ResultOf`."""

    operators: tuple[Any, ...]
    function: Callable[[Node], Node]

    @property
    def name(self) -> str:
        return self.function.__name__

    def __str__(self) -> str:
        summary = (self.function.__doc__ or "").partition("\n")[0]
        return f"{self.name} ({', '.join(map(str, self.operators))}): {summary}"


def rewrite(*operators: Any) -> Callable[[Callable[[Node], Node]], Rewrite]:
    """Declares that the function rewrites nodes of these operators."""
    return lambda function: Rewrite(operators, function)


@dataclass(frozen=True)
class Rewrites:
    """A set of rewrites; where several match one node, the first that applies is taken."""

    members: tuple[Rewrite, ...]

    @staticmethod
    def declared_in(*families: ModuleType) -> Rewrites:
        """Those of some modules, in order."""
        values = [value for family in families for value in vars(family).values()]
        return Rewrites(tuple(value for value in values if isinstance(value, Rewrite)))

    def __add__(self, others: Rewrites) -> Rewrites:
        return Rewrites(self.members + others.members)

    def __str__(self) -> str:
        return "\n".join(map(str, self.members))

    @cached_property
    def _by_operator(self) -> dict[Any, list[tuple[int, Rewrite]]]:
        table: dict[Any, list[tuple[int, Rewrite]]] = {}
        for entry in enumerate(self.members):
            for key in entry[1].operators:
                table.setdefault(key, []).append(entry)
        return table

    def matching(self, node: Node) -> list[Rewrite]:
        """The rewrites declared for the operator of ``node``, in order."""
        found = {index: own for key in _keys(node) for index, own in self._by_operator.get(key, ())}
        return [found[index] for index in sorted(found)]

    def apply(
        self, graph: Graph, visit: Callable[[Node], None] = lambda node: None
    ) -> dict[Node, Node]:
        """Rewrites all nodes until no rewrite applies; returns what stands for those replaced.

        In the order of the graph, so that a rewrite finds its operands in their last form; new
        nodes come next. ``visit`` is called with every node that no rewrite applies to any more.
        Replaced nodes are gone, and what only they read stays.
        """
        replaced: dict[Node, Node] = {}
        made_by: dict[Node, int] = {}
        node = next(iter(graph.nodes))
        while node.op != "output":
            before, after = node.prev, node.next
            new = self._rewritten(node, made_by.get(node, 0))
            if new is None:
                visit(node)
                node = after
                continue
            for added in _between(before, node):
                made_by[added] = made_by.get(node, 0) + 1
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            replaced[node] = new
            node = before.next
        return replaced

    def _rewritten(self, node: Node, chain: int) -> Node | None:
        """What the first rewrite that applies makes of ``node``; the last reason is noted."""
        before, refusal = node.prev, ""
        for own in self.matching(node):
            try:
                new = own.function(node)
            except Unmatched as reason:
                refusal = f"{own.name}: {reason}"
                for added in reversed(list(_between(before, node))):
                    node.graph.erase_node(added)
                continue
            if chain >= _LONGEST_CHAIN or new is node:
                raise RewriteError(
                    f"rewrite {own.name!r} never comes to an end at {node.name} ({node.target}): "
                    "let it raise Unmatched for what it has made itself"
                )
            return new
        if refusal:
            note(node, refusal=refusal)
        return None


def _keys(node: Node) -> tuple[Any, ...]:
    if node.op != "call_function":
        return ()
    target = node.target
    if target is operator.getitem:
        whole: Any = node.args[0]
        packet = getattr(whole.target, "overloadpacket", None)
        return target, ResultOf(whole.target), ResultOf(packet)
    return target, getattr(target, "overloadpacket", None)


def _between(before: Node, node: Node) -> Iterator[Node]:
    """The nodes between two of the graph, in order."""
    while before.next is not node:
        before = before.next
        yield before
