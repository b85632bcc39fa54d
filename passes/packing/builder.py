"""Nodes of several stages in one joint graph, each made once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

from sparsify.codegen import ops, tables
from sparsify.codegen.geometry import Geometry
from torch.fx import Graph, Node

from ..facts import facts, note
from ..layout import Grid, Layout, Space


class Builder:
    """Adds nodes to ``graph``. ``_memo`` holds those that are made once, by meaning. ``padded``
    tables have one of few sizes. Layouts have ``items`` along their axis ``n``."""

    def __init__(self, graph: Graph, padded: bool, items: int) -> None:
        self._graph = graph
        self.items = items
        self._padding = (True,) if padded else ()
        self._of_items = (items,) if items > 1 else ()
        self._memo: dict[Any, Any] = {}

    def _node(self, stage: str, target: Any, args: Any, kwargs: Any = {}) -> Node:  # noqa: B006
        with self._graph.inserting_before(self._graph.output_node()):
            node = self._graph.call_function(target, args, kwargs)
        note(node, stage=stage)
        return node

    def update(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self._node("update", target, args, kwargs)

    def _shared(self, stage: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        key = (stage, target, *((type(arg), arg) for arg in args), *kwargs.items())
        if key not in self._memo:
            self._memo[key] = self._node(stage, target, args, kwargs)
        node: Node = self._memo[key]
        return node

    def plan(self, function: Callable[..., Any], *args: Any) -> Node:
        """A table; equal calls share one node."""
        return self._shared("plan", function, *map(_table, args))

    def record(self, function: Any, *args: Any) -> Node:
        """A value that the record graph computes besides the model's own."""
        return self._shared("record", function, *args)

    def sized(self, table: Node, sites: Node | None) -> Node:
        """Ties the first size of a table to the number of ``sites``; None: all, known already."""
        if sites is None:
            return table
        note(table, dynamic=True)
        return self._shared("update", ops.same_sites, table, sites)

    def sites(self, mask: Node | None, layout: Layout) -> Node | None:
        """The active positions of a value with this mask and layout, None for all."""
        if mask is None:
            return None
        node = self.plan(tables.active_sites, mask, *self._padding)
        note(node, dynamic=True)
        space = layout.space
        if space.is_grid:
            return node
        return self._shared("update", tables.space_sites, node, *_around(space), *self._of_items)

    def own_sites(self, value: Node) -> Node | None:
        mask, layout = facts(value).mask, facts(value).layout
        return self.sites(mask, layout) if mask and layout else None

    def table(
        self, function: Callable[..., Any], geometry: Geometry, sites: Node | None, *args: Any
    ) -> Node:
        if self.items > 1:
            inside = self.plan(tables.sites_within, sites, prod(geometry.out_grid), self.items)
            return self.sized(self.plan(function, geometry, inside, *args), sites)
        return self.sized(self.plan(function, geometry, sites, *args), sites)

    # -- items of a batch ---------------------------------------------------------------------

    def sites_within(self, sites: Node | None, count: int) -> Node:
        """Where in their item ``sites`` are, of ``count`` an item."""
        return self._by_site(tables.sites_within, sites, count)

    def items_at(self, sites: Node | None, count: int) -> Node:
        """Whose ``sites`` these are, of ``count`` an item."""
        return self._by_site(tables.items_at, sites, count)

    def _by_site(self, function: Callable[..., Any], sites: Node | None, count: int) -> Node:
        if sites is not None and facts(sites).stage == "update":
            return self._shared("update", function, sites, count, self.items)
        return self.sized(self.plan(function, sites, count, self.items), sites)

    def lanes(self, mask: Node, layout: Layout) -> tuple[Node, Node]:
        """The packed rows of each item, side by side, and where in these a row stands."""
        node, around = self.plan(tables.active_sites, mask, *self._padding), _around(layout.space)
        both = self.plan(tables.lanes, node, around, self.items, *self._padding)
        rows, places = (self.plan(operator.getitem, both, index) for index in (0, 1))
        note(rows, dynamic=True)
        note(places, dynamic=True)
        return rows, self._shared("update", ops.same_sites, places, self.sites(mask, layout))


def _around(space: Space) -> tuple[Grid, int, int, int]:
    return space.grid, space.outer, space.before, space.after


def _table(arg: Any) -> Any:
    """The table behind a node of the update that only declares its size; None for all sites."""
    if not isinstance(arg, Node) or arg.target is ops.every_site:
        return None if isinstance(arg, Node) else arg
    return _table(arg.args[0]) if arg.target is ops.same_sites else arg
