"""What places are made of: the current and the recorded values of the model."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
from sparsify.codegen import norms, ops, tables
from sparsify.codegen.geometry import Geometry, Same
from torch.fx import Graph, Node

from ..costs import Costs
from ..facts import facts, is_constant, note
from ..layout import Layout
from ..rules import find_rule
from ..rules.base import layout_of, shape_of
from .builder import Builder
from .items import apart, joined
from .place import Place
from .recall import Recall
from .recompute import follows

aten = torch.ops.aten

Norm = Literal["updated", "baseline"]


class Values(Builder):
    """Values of the model, current and recorded, at some sites or at all.

    ``norm`` statistics are updated or the baseline's; maps are remembered in ``dtype``, if it is
    given and narrower than theirs.
    """

    def __init__(
        self, graph: Graph, norm: Norm, dtype: torch.dtype | None, padded: bool, costs: Costs
    ) -> None:
        # An input on a grid: tells the device.
        self._first = next(n for n in graph.nodes if facts(n).edited)
        super().__init__(graph, padded, layout_of(self._first).items)
        self._norm, self._dtype, self.costs = norm, dtype, costs
        self._current: dict[Node, Node] = {}
        self._origin: dict[Node, tuple[Any, ...]] = {}
        self._recall = Recall(norm == "updated")

    def prepacked(
        self, weight: Node, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Node:
        return self._shared("constants", function, weight, *args, **kwargs)

    # -- current values -----------------------------------------------------------------------

    def taps(
        self, image: Node, geometry: Geometry, out_sites: Node | None
    ) -> tuple[Node, Node | None, Node]:
        in_sites = self.own_sites(image)
        how = (bool(self._padding), self.items) if self.items > 1 else self._padding
        both = self.plan(tables.kernel_map, geometry, in_sites, out_sites, *how)
        kernel_map = self.sized(self.plan(operator.getitem, both, 0), out_sites)
        if not facts(image).edited:
            whole = self.materialise(image)
            return self._shared("update", aten.flatten.using_ints, whole, 2, 3), None, kernel_map
        x = self.current_at(image, in_sites)
        if in_sites is None:
            return x, None, kernel_map
        halo = self.plan(operator.getitem, both, 1)
        note(halo, dynamic=True)
        return x, self.baseline_at(image, halo), kernel_map

    def current_at(self, value: Node, sites: Node | None) -> Node:
        """The packed current value at ``sites`` (None: all of them, in order)."""
        own = self.own_sites(value)
        if own is not None and own is sites:
            return self._current[value]
        key = ("current_at", value, sites)
        if key not in self._memo:
            self._memo[key] = self._move(value, own, sites)
        node: Node = self._memo[key]
        return node

    def _move(self, value: Node, own: Node | None, sites: Node | None) -> Node:
        layout, rule = layout_of(value), find_rule(value)
        if sites is not None and rule is not None and follows(value) and rule.geometry(value):
            return rule.emit(value, Place(self, sites, False))  # what its source gives anywhere
        if own is None or sites is None or not layout.space.is_grid:
            return self._take(value, self.materialise(value), sites)
        same = Same(layout.space.grid)
        x, halo, kernel_map = self.taps(value, same, sites)
        return self.update(ops.realign, x, halo, kernel_map, layout.site_dim)

    def _take(self, value: Node, full: Node, sites: Node | None) -> Node:
        """``full``, arranged as ``value``, packed at ``sites``."""
        layout = layout_of(value)
        full = self._merged("update", layout, full)
        return full if sites is None else self.update(ops.take, full, sites, layout.site_dim)

    def _merged(self, stage: str, layout: Layout, full: Node) -> Node:
        """A full value with ``y`` and ``x`` flattened to one axis, of all items."""
        if self.items > 1:
            return self._shared(stage, ops.regroup, full, *joined(layout))
        if layout.merged:
            return full
        dim = layout.site_dim
        return self._shared(stage, aten.flatten.using_ints, full, dim, dim + 1)

    def materialise(self, value: Node) -> Node:
        """The current value of every site: the overlay, written out if it is packed."""
        if is_constant(value):
            return value
        if facts(value).mask is None:
            return self._current[value]
        key = ("full", value)
        if key not in self._memo:
            base = self._stored(value)
            layout = layout_of(value)
            full = self._overlaid(value, base)
            if self.items > 1:
                full = self.update(ops.regroup, full, *apart(layout, rows=by_rows(layout)))
            elif by_rows(layout):
                full = self.update(ops.from_rows, full, *layout.space.grid)
            elif not layout.merged:
                dim = layout.site_dim
                full = self.update(aten.unflatten.int, full, dim, layout.shape[dim : dim + 2])
            self._memo[key] = full
        node: Node = self._memo[key]
        return node

    # -- baseline values ----------------------------------------------------------------------

    def baseline_at(self, value: Node, sites: Node, anchor: Node | None = None) -> Node:
        """The recorded value at ``sites``: recomputed from an ancestor, or remembered. For an
        ``anchor``, what is remembered are its leaves."""
        key = ("baseline_at", value, sites, anchor)
        if key not in self._memo:
            self._memo[key] = self._recalled(value, sites, anchor)
        node: Node = self._memo[key]
        return node

    def _recalled(self, value: Node, sites: Node, anchor: Node | None) -> Node:
        if self._recall.is_remembered(value):
            stored = self._stored(value) if anchor is None else self._leaf(anchor, value)
            if by_rows(layout_of(value)):
                rows = self.update(ops.take_rows, stored, sites)
            else:
                rows = self.update(ops.take, stored, sites, layout_of(value).site_dim)
            return self._widened(rows, value)
        rule, leaves = find_rule(value), self._recall.leaves(value)
        assert rule is not None
        if anchor is not None or not leaves:
            return rule.emit(value, Place(self, sites, True, anchor))
        made = rule.emit(value, Place(self, sites, True, value))
        parts = [self.baseline_at(leaf, sites, value) for leaf in leaves]
        kept = parts[0] if len(parts) == 1 else self.update(ops.concat_channels, parts)
        return self.update(ops.of_one_run, self._is_one_run(), made, kept)

    def _leaf(self, anchor: Node, leaf: Node) -> Node:
        """The remembered ``leaf``, in whose place ``anchor`` stands after a commit."""
        key = ("leaf", anchor, leaf)
        if key not in self._memo:
            self._memo[key] = self._node("record", ops.same, (self._stored(leaf),))
            self._origin[self._memo[key]] = ("leaf", anchor, leaf)
        node: Node = self._memo[key]
        return node

    def _is_one_run(self) -> Node:
        """A recorded boolean: were all sites computed in one run, without commits since?"""
        node = self.record(ops.truth, self._first, True)
        self._origin[node] = ("truth", node)
        return node

    def _blended(self, value: Node) -> Node:
        """Packed at all sites, the current value over the recorded one."""
        key = ("blended", value)
        if key not in self._memo:
            layout, device = layout_of(value), self._first.meta["val"].device
            count = self.items * layout.space.size
            every = self._shared("update", ops.every_site, count, device)
            sites = self.own_sites(value)
            base, new = self.baseline_at(value, every), self._current[value]
            self._memo[key] = self.update(ops.overlay, base, new, sites, layout.site_dim)
        node: Node = self._memo[key]
        return node

    def _stored(self, value: Node) -> Node:
        """The record node to remember: images as rows, others with one axis of sites."""
        layout = layout_of(value)
        if self.items > 1:
            node = self.record(ops.regroup, value, *joined(layout, rows=by_rows(layout)))
        elif by_rows(layout):
            node = self.record(ops.to_rows, value)
        else:
            node = self._merged("record", layout, value)
        node = self._narrowed("record", node, value)
        self._origin[node] = ("value", value)
        return node

    def _narrowed(self, stage: str, x: Node, value: Node) -> Node:
        """``x``, all of ``value``, as it is remembered."""
        dtype = self._dtype
        return self._shared(stage, aten.to.dtype, x, dtype) if _is_wider(value, dtype) else x

    def _widened(self, x: Node, value: Node) -> Node:
        """``x``, some of the remembered ``value``, as the model computes it."""
        own = value.meta["val"].dtype
        is_narrow = _is_wider(value, self._dtype)
        return self._shared("update", aten.to.dtype, x, own) if is_narrow else x

    def _overlaid(self, value: Node, base: Node) -> Node:
        """The remembered form of ``value`` with the active sites replaced."""
        layout, sites = layout_of(value), self.own_sites(value)
        if sites is None:
            full = self._merged("update", layout, self._current[value])
            if by_rows(layout):
                full = self.update(aten.transpose.int, full, 1, 2)
            return full
        base = self._widened(base, value)
        if by_rows(layout):
            return self._shared("update", ops.overlay_rows, base, self._current[value], sites)
        dim = layout.site_dim
        return self._shared("update", ops.overlay, base, self._current[value], sites, dim)

    # -- statistics of group norms --------------------------------------------------------------

    def recorded_statistics(self, norm: Node) -> tuple[Node, Node]:
        mean, rstd = (self.record(operator.getitem, norm, index) for index in (1, 2))
        self._origin[mean], self._origin[rstd] = ("mean", norm), ("rstd", norm)
        return mean, rstd

    def current_statistics(self, norm: Node, x: Node) -> tuple[Node, Node]:
        if self._norm == "baseline":
            return self.recorded_statistics(norm)
        key = ("statistics", norm)
        if key not in self._memo:
            sites = self.own_sites(x)
            if sites is None:
                both = self.update(norm.target, self.materialise(x), *norm.args[1:])
                parts = tuple(self.update(operator.getitem, both, index) for index in (1, 2))
            else:
                recorded = self.recorded_statistics(norm)
                count, eps = prod(shape_of(x)[2:]), norm.args[4]
                old = self.baseline_at(x, sites)
                new = self._current[x]
                more = (sites,) if self._padding else ()
                if self.items > 1:
                    own = self.items_at(sites, layout_of(x).space.size)
                    more = (*(more or (None,)), own)
                both = self.update(norms.updated_statistics, new, old, *recorded, count, eps, *more)
                parts = tuple(self.update(operator.getitem, both, index) for index in (0, 1))
            self._memo[key] = parts
        statistics: tuple[Node, Node] = self._memo[key]
        return statistics


def by_rows(layout: Layout) -> bool:
    """Images [N, C, H, W] are remembered site by site, so that a gather copies whole rows."""
    return layout.is_image and len(layout.dims) == 4


def _is_wider(value: Node, dtype: torch.dtype | None) -> bool:
    own = value.meta["val"].dtype
    return dtype is not None and own.is_floating_point and own.itemsize > dtype.itemsize
