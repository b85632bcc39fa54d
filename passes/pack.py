"""Writes the update graph: every node again, on packed values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Literal

import torch
from sparsify.codegen import norms, ops, tables
from sparsify.codegen.geometry import Geometry, Same
from torch.fx import GraphModule, Node

from .analyze import is_drawn
from .base import Pass
from .costs import Costs
from .facts import facts, is_constant, note
from .items import apart, joined
from .layout import Layout
from .packed import Packed
from .place import Place
from .recall import Recall
from .recompute import follows, sources_pack
from .rules import find_rule
from .rules.base import layout_of, shape_of
from .stages import Stages

aten = torch.ops.aten


@dataclass(frozen=True)
class Pack(Pass):
    """Adds the update nodes (stage "update"), what no edit reaches (stage "conditions"), the tables
    (stage "plan") and what the record graph must remember (stage "record") to the joint graph.

    norm "updated" corrects the recorded statistics by what changed, "baseline" takes them as
    they are. Maps are remembered in ``dtype``, if it is given and narrower than theirs. ``padded``
    tables have one of few sizes (:mod:`sparsify.codegen.tables`). ``costs`` are the machine's.
    """

    requires: ClassVar[tuple[str, ...]] = ("layouts", "masks")
    ensures: ClassVar[tuple[str, ...]] = ("packed",)

    norm: Literal["updated", "baseline"] = "updated"
    dtype: torch.dtype | None = None
    padded: bool = False
    costs: Costs = field(default_factory=Costs)

    def __call__(self, module: GraphModule) -> GraphModule:
        module.meta["packed"] = Packer(module, self).run()
        return module


class Packer(Stages):
    """The state of one run of :class:`Pack`."""

    def __init__(self, module: GraphModule, options: Pack) -> None:
        # An input on a grid: tells the device.
        self._first = next(n for n in module.graph.nodes if facts(n).edited)
        super().__init__(module.graph, options.padded, layout_of(self._first).items)
        self._options, self.costs = options, options.costs
        self._current: dict[Node, Node] = {}
        self._origin: dict[Node, tuple[Any, ...]] = {}
        self._recall = Recall(options.norm == "updated")

    def run(self) -> Packed:
        nodes = [n for n in self._graph.nodes if is_constant(n) or facts(n).stage == "record"]
        for node in nodes:
            self._current[node] = self._emit(node)
        results: Any = self._graph.output_node().args[0]
        leaves = [leaf for leaf in results if isinstance(leaf, Node)]
        outputs = [self._output(leaf) for leaf in leaves]
        return Packed(outputs, self._current.__getitem__, self.committed)

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
                full = self.update(ops.regroup, full, *apart(layout, rows=_by_rows(layout)))
            elif _by_rows(layout):
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
            if _by_rows(layout_of(value)):
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
        """A recorded truth value: were all sites computed in one run, without commits since?"""
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
            node = self.record(ops.regroup, value, *joined(layout, rows=_by_rows(layout)))
        elif _by_rows(layout):
            node = self.record(ops.to_rows, value)
        else:
            node = self._merged("record", layout, value)
        node = self._narrowed("record", node, value)
        self._origin[node] = ("value", value)
        return node

    def _narrowed(self, stage: str, x: Node, value: Node) -> Node:
        """``x``, all of ``value``, as it is remembered."""
        dtype = self._options.dtype
        return self._shared(stage, aten.to.dtype, x, dtype) if _is_wider(value, dtype) else x

    def _widened(self, x: Node, value: Node) -> Node:
        """``x``, some of the remembered ``value``, as the model computes it."""
        own = value.meta["val"].dtype
        is_narrow = _is_wider(value, self._options.dtype)
        return self._shared("update", aten.to.dtype, x, own) if is_narrow else x

    def _overlaid(self, value: Node, base: Node) -> Node:
        """The remembered form of ``value`` with the active sites replaced."""
        layout, sites = layout_of(value), self.own_sites(value)
        if sites is None:
            full = self._merged("update", layout, self._current[value])
            if _by_rows(layout):
                full = self.update(aten.transpose.int, full, 1, 2)
            return full
        base = self._widened(base, value)
        if _by_rows(layout):
            return self._shared("update", ops.overlay_rows, base, self._current[value], sites)
        dim = layout.site_dim
        return self._shared("update", ops.overlay, base, self._current[value], sites, dim)

    # -- statistics of group norms --------------------------------------------------------------

    def recorded_statistics(self, norm: Node) -> tuple[Node, Node]:
        mean, rstd = (self.record(operator.getitem, norm, index) for index in (1, 2))
        self._origin[mean], self._origin[rstd] = ("mean", norm), ("rstd", norm)
        return mean, rstd

    def current_statistics(self, norm: Node, x: Node) -> tuple[Node, Node]:
        if self._options.norm == "baseline":
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
                more = (sites,) if self._options.padded else ()
                if self.items > 1:
                    own = self.items_at(sites, layout_of(x).space.size)
                    more = (*(more or (None,)), own)
                both = self.update(norms.updated_statistics, new, old, *recorded, count, eps, *more)
                parts = tuple(self.update(operator.getitem, both, index) for index in (0, 1))
            self._memo[key] = parts
        statistics: tuple[Node, Node] = self._memo[key]
        return statistics

    # -- constants ----------------------------------------------------------------------------

    def prepacked(
        self, weight: Node, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Node:
        return self._shared("constants", function, weight, *args, **kwargs)

    # -- one node -----------------------------------------------------------------------------

    def _emit(self, node: Node) -> Node:
        """The update node for ``node``: packed at its mask, or whole."""
        if is_constant(node):
            return node
        if node.op == "placeholder":
            return self._input(node)
        mask, rule = facts(node).mask, find_rule(node)
        if not facts(node).edited:
            if is_drawn(node):
                return node  # recorded: other conditions do not draw anew
            new = self._condition(node)
        elif mask is not None and not sources_pack(node):
            new = self._take(node, self._clone(node), self.own_sites(node))
        elif mask is not None:
            assert rule is not None
            new = rule.emit(node, Place(self, self.own_sites(node), False))
        else:
            new = self._whole(node) or self._clone(node)
        for key in ("stack_trace", "nn_module_stack"):
            if key in node.meta:
                new.meta[key] = node.meta[key]
        return new

    def _whole(self, node: Node) -> Node | None:
        rule = find_rule(node)
        if rule is None or facts(node).layout is None:
            return None
        return rule.emit_all(node, Place(self, None, False))

    def _clone(self, node: Node, stage: str = "update") -> Node:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self.materialise)
        return self._node(stage, node.target, args, kwargs)

    def _condition(self, node: Node) -> Node:
        """What no edit reaches: recorded too, and computed again only for other conditions."""
        new = self._clone(node, "conditions")
        note(new, recorded=node)
        return new

    def _input(self, node: Node) -> Node:
        """A second placeholder: the edited input; at inactive sites the recorded one counts."""
        with self._graph.inserting_before(self._graph.output_node()):
            new = self._graph.placeholder(f"{node.name}_edited")
        stage = "update" if facts(node).edited else "conditions"
        note(new, stage=stage)
        note(new, recorded=node)
        sites = self.own_sites(node)
        return new if sites is None else self._take(node, new, sites)

    def _output(self, node: Node) -> Node:
        """A result of the model: active sites over the recorded result."""
        sites = self.own_sites(node)
        if sites is None:
            return self.materialise(node)
        layout = layout_of(node)
        self._origin[node] = ("output", node)
        if self.items > 1:
            old, new = self._merged("update", layout, node), self._current[node]
            full = self._shared("update", ops.overlay, old, new, sites, layout.site_dim)
            full = self._shared("update", ops.regroup, full, *apart(layout))
            return self._shared("update", ops.contiguous, full)
        if _by_rows(layout):
            return self._shared("update", ops.overlay_image, node, self._current[node], sites)
        if layout.merged:
            dim = layout.site_dim
            return self._shared("update", ops.overlay, node, self._current[node], sites, dim)
        return self.materialise(node)

    def committed(self, recorded: Node) -> Node:
        """What a recorded value becomes when the edit is made the new baseline."""
        key = ("committed", recorded)
        if key not in self._memo:
            self._memo[key] = self._committed(recorded)
        node: Node = self._memo[key]
        return node

    def _committed(self, recorded: Node) -> Node:
        kind, node, *leaf = self._origin.get(recorded, ("plain", recorded))
        if kind == "value":
            return self._narrowed("update", self._overlaid(node, recorded), node)
        if kind == "leaf":
            return self._in_place_of(leaf[0], node)
        if kind in ("mean", "rstd"):
            return self._committed_statistics(node)[kind == "rstd"]
        if kind == "truth":
            return self.update(ops.truth, recorded, False)
        if kind == "output":
            return self._output(node)
        return self.materialise(node)

    def _in_place_of(self, leaf: Node, anchor: Node) -> Node:
        """The part of ``anchor`` that stands in the place of ``leaf``."""
        full, leaves = self._blended(anchor), self._recall.leaves(anchor)
        if len(leaves) > 1:
            before = leaves[: leaves.index(leaf)]
            start = sum(shape_of(other)[1] for other in before)
            full = self.update(aten.slice.Tensor, full, 1, start, start + shape_of(leaf)[1])
        if _by_rows(layout_of(leaf)):
            full = self.update(aten.transpose.int, full, 1, 2)
        return self._narrowed("update", full, leaf)

    def _committed_statistics(self, norm: Node) -> tuple[Node, Node]:
        """Of the whole edited map, which a commit writes out: corrections would add up."""
        x = norm.all_input_nodes[0]
        if self._options.norm == "baseline" or self.own_sites(x) is None:
            return self.current_statistics(norm, x)
        groups, eps = norm.args[3:]
        whole = self._blended(x)
        if self.items > 1:
            whole = self._shared("update", ops.regroup, whole, *apart(layout_of(x)))
        both = self._shared("update", norm.target, whole, None, None, groups, eps)
        return self.update(operator.getitem, both, 1), self.update(operator.getitem, both, 2)


def _by_rows(layout: Layout) -> bool:
    """Images [N, C, H, W] are remembered site by site, so that a gather copies whole rows."""
    return layout.is_image and len(layout.dims) == 4


def _is_wider(value: Node, dtype: torch.dtype | None) -> bool:
    own = value.meta["val"].dtype
    return dtype is not None and own.is_floating_point and own.itemsize > dtype.itemsize
