"""Where a packed computation happens; what the rules use to emit nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from sparsify.codegen import ops, tables
from sparsify.codegen.geometry import Geometry
from torch.fx import Node

from ..costs import Costs
from ..facts import facts, is_constant, layout_of
from ..layout import Layout
from .items import by_item, differs, joined

aten = torch.ops.aten


class Packer(Protocol):
    """What places need of the packer that fills the update graph."""

    costs: Costs

    def update(self, target: Any, *args: Any, **kwargs: Any) -> Node: ...

    def plan(self, function: Callable[..., Any], *args: Any) -> Node: ...

    def table(
        self, function: Callable[..., Any], geometry: Geometry, sites: Node | None, *args: Any
    ) -> Node: ...

    def sized(self, table: Node, sites: Node | None) -> Node: ...

    def sites(self, mask: Node | None, layout: Layout) -> Node | None: ...

    items: int

    def sites_within(self, sites: Node | None, count: int) -> Node: ...

    def items_at(self, sites: Node | None, count: int) -> Node: ...

    def lanes(self, mask: Node, layout: Layout) -> tuple[Node, Node]: ...

    def taps(
        self, image: Node, geometry: Geometry, out_sites: Node | None
    ) -> tuple[Node, Node | None, Node]: ...

    def current_at(self, value: Node, sites: Node | None) -> Node: ...

    def baseline_at(self, value: Node, sites: Node, anchor: Node | None = None) -> Node: ...

    def materialise(self, value: Node) -> Node: ...

    def prepacked(
        self, weight: Node, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Node: ...

    def current_statistics(self, norm: Node, x: Node) -> tuple[Node, Node]: ...

    def recorded_statistics(self, norm: Node) -> tuple[Node, Node]: ...


class Place:
    """A set of sites of one grid: the active ones of a mask, or some of the baseline.

    ``sites`` is a table node, None for all sites. At a baseline place every operand is the
    recorded one, so the result is the recorded value, recomputed; for ``anchor``, of leaves that
    are kept for it alone.
    """

    def __init__(
        self, packer: Packer, sites: Node | None, is_baseline: bool, anchor: Node | None = None
    ) -> None:
        self._packer = packer
        self.sites = sites
        self.is_baseline = is_baseline
        self._anchor = anchor

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """An update node."""
        return self._packer.update(target, *args, **kwargs)

    def clone(self, node: Node, operand: Callable[[Node], Node]) -> Node:
        """``node`` on other operands."""
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), operand)
        return self.call(node.target, *args, **kwargs)

    def packed(self, value: Node) -> Node:
        """A value on the grid, at the sites of this place."""
        if self.is_baseline:
            assert self.sites is not None
            return self._packer.baseline_at(value, self.sites, self._anchor)
        return self._packer.current_at(value, self.sites)

    def beside(self, value: Node, node: Node) -> Node:
        """An operand of ``node`` at the same sites, along the axis that it has itself."""
        if self.is_baseline:
            return self.packed(value)
        sites = self._packer.sites(facts(node).mask, layout_of(value))
        return self._packer.current_at(value, sites)

    def plain(self, value: Any) -> Any:
        """A value without a grid, whole; anything but a node is returned as it is."""
        if not isinstance(value, Node):
            return value
        return value if self.is_baseline else self._packer.materialise(value)

    def entries(self, value: Node, layout: Layout) -> Node:
        """A value without a grid that stands beside it, along the axis of sites of ``layout``."""
        full: Node = self.plain(value)
        if self.items == 1:
            return full
        shape = tuple(value.meta["val"].shape)
        return self.call(ops.regroup, full, *joined(layout, shape, beside=True))

    def materialise(self, value: Node) -> Node:
        """The current value of every site: the overlay, written out."""
        return self._packer.materialise(value)

    def aligned(self, value: Node, layout: Layout) -> Node:
        """An operand that broadcasts against a value of ``layout``, at the sites of this place."""
        own = facts(value).layout
        if facts(value).edited and own and own.grid:
            return self.packed(value)
        shape = tuple(value.meta["val"].shape)
        if differs(layout, shape):
            return self._of_items(self.plain(value), shape, layout)
        site = layout.site_dim - len(layout.dims)  # counted from the back
        spatial = range(site, site + (1 if layout.merged else 2))
        sizes = [shape[dim] if len(shape) >= -dim else 1 for dim in spatial]
        full: Node = self.plain(value)
        if any(size > 1 for size in sizes):
            return self._take_static(full, shape, layout, site)
        if layout.merged or len(shape) < -site:
            return full
        return self.call(aten.squeeze.dim, full, site)

    def _take_static(self, full: Node, shape: tuple[int, ...], layout: Layout, site: int) -> Node:
        """An unedited tensor with a value for every site, gathered."""
        if not layout.merged:
            target = [*[1] * (-site - len(shape)), *shape]
            target[site], target[site + 1] = layout.shape[site], layout.shape[site + 1]
            if tuple(target) != shape:
                full = self.call(aten.expand.default, full, target)
            full = self.call(aten.flatten.using_ints, full, site, site + 1)
            site += 1
        sites = self.sites
        if self._packer.items > 1:
            sites = self._packer.sites_within(sites, layout.space.size)
        return full if sites is None else self.call(ops.take, full, sites, site)

    def _of_items(self, full: Node, shape: tuple[int, ...], layout: Layout) -> Node:
        """A tensor with a value for each item, and perhaps for each site of it, gathered."""
        spatial = range(layout.site_dim, layout.site_dim + (1 if layout.merged else 2))
        target = [*[1] * (len(layout.dims) - len(shape)), *shape]
        if len({target[dim] > 1 for dim in spatial}) > 1:
            for dim in spatial:
                target[dim] = layout.shape[dim]
            full = self.call(aten.expand.default, full, target)
        has_sites = any(target[dim] > 1 for dim in spatial)
        full = self.call(ops.regroup, full, *joined(layout, target))
        sites = self.sites if has_sites else self.item_of_site(layout)
        return full if sites is None else self.call(ops.take, full, sites, layout.site_dim)

    @property
    def items(self) -> int:
        """How many items a batch has, whose sites packed values hold."""
        return self._packer.items

    def item_of_site(self, layout: Layout) -> Node:
        """int64 [S]: whose item each site of a value of ``layout`` is."""
        return self._packer.items_at(self.sites, layout.space.size)

    def by_item(self, value: Node, layout: Layout) -> Node:
        """All of an operand whose axes, but the last two, broadcast against a value of ``layout``;
        with an axis of its items before them."""
        shape = tuple(value.meta["val"].shape)
        return self.call(ops.regroup, self.materialise(value), *by_item(layout, shape))

    def lanes(self, node: Node) -> tuple[Node, Node]:
        """The packed rows of each item of ``node``, side by side (:func:`.tables.lanes`)."""
        mask = facts(node).mask
        assert mask is not None
        return self._packer.lanes(mask, layout_of(node))

    @property
    def costs(self) -> Costs:
        """What is faster on the machine that the graphs are for."""
        return self._packer.costs

    def prepack(
        self, weight: Node, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Node:
        """``function(weight, *args, **kwargs)``; of a constant computed once, and again when the
        model's weights change. A ``format`` is one of the kernel that reads the result, which
        takes it too (:mod:`sparsify.codegen.prepack`)."""
        if is_constant(weight):
            return self._packer.prepacked(weight, function, *args, **kwargs)
        return self.call(function, self.plain(weight), *args, **kwargs)

    def taps(self, image: Node, geometry: Geometry) -> tuple[Node, Node | None, Node]:
        """(packed input, halo, kernel map) of an operator that writes the sites of this place."""
        return self._packer.taps(image, geometry, self.sites)

    def table(self, function: Callable[..., Any], geometry: Geometry, *args: Any) -> Node:
        """``function(geometry, sites, *args)``: a table with one row a site."""
        return self._packer.table(function, geometry, self.sites, *args)

    def moved(self, geometry: Geometry) -> Place:
        """The baseline place at the input sites that these sites read through ``geometry``."""
        assert self.sites is not None and self.is_baseline
        items = (self.items,) if self.items > 1 else ()
        sites = self._packer.plan(tables.source_sites, geometry, self.sites, *items)
        return Place(self._packer, self._packer.sized(sites, self.sites), True, self._anchor)

    def statistics(self, norm: Node, x: Node) -> tuple[Node, Node]:
        """Mean and rstd [N, G] that a group norm uses here."""
        if self.is_baseline:
            return self._packer.recorded_statistics(norm)
        return self._packer.current_statistics(norm, x)
