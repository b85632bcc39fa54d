"""Mask propagation: decides for every node which of its sites an update computes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sparsify.codegen import tables
from sparsify.codegen.geometry import Geometry
from torch.fx import GraphModule, Node

from .base import Pass
from .facts import facts, note
from .frames import Frames, reach
from .layout import Grid
from .macs import macs
from .packing.recompute import follows, grid_sources
from .rules import find_rule
from .rules.base import is_edited, layout_of
from .rules.resample import PadRule

Choice = Callable[[Node], Node | None]
"""The mask of each edited node; None: it is computed whole."""


@dataclass(frozen=True)
class PropagateMasks(Pass):
    """Adds the ``mask`` input and the mask nodes of the plan; gives every edited node its
    ``mask``, None where it is computed whole.

    policy "fixed": one mask per grid, the input mask dilated by ``dilate`` pixels and pooled,
    and moved with what crops, rolls, flips and joins move (:mod:`.frames`); the smallest grids, up
    to ``dense_share`` of all MACs, are computed whole. policy "exact":
    masks grow with every operator's reach, and an operator that is global activates all sites.
    """

    requires: ClassVar[tuple[str, ...]] = ("layouts",)
    ensures: ClassVar[tuple[str, ...]] = ("masks",)

    grid: Grid
    policy: Literal["fixed", "exact"] = "fixed"
    dilate: int = 5
    dense_share: float = 0.06

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = module.graph
        inputs = graph.find_nodes(op="placeholder")
        with graph.inserting_after(inputs[-1]):
            mask = graph.placeholder("mask")
        note(mask, stage="plan")
        work = [node for node in graph.nodes if node is not mask and node.op != "output"]
        plan = _MaskBuilder(graph)
        policy = self._fixed if self.policy == "fixed" else self._exact
        choose = policy(work, mask, plan)
        for node in work:
            note(node, stage=facts(node).stage or "record")
            note(node, mask=choose(node) if facts(node).edited else None)
        return module

    def dense_grids(self, nodes: list[Node]) -> set[Grid]:
        """The smallest grids, all smaller than the input's, within the share of MACs."""
        work: dict[Grid, int] = defaultdict(int)
        for node in nodes:
            layout = facts(node).layout
            if layout and layout.grid:
                work[layout.grid] += macs(node)
        budget = self.dense_share * sum(work.values())
        chosen: set[Grid] = set()
        for grid in sorted(work, key=lambda g: g[0] * g[1]):
            budget -= work[grid]
            if budget <= 0 or grid[0] * grid[1] >= self.grid[0] * self.grid[1]:
                break
            chosen.add(grid)
        return chosen

    def _fixed(self, work: list[Node], mask: Node, plan: _MaskBuilder) -> Choice:
        dense = self.dense_grids(work)
        # Where convolutions wrap around the border, so does what an edit touches.
        wraps = (wrapped,) if any(wrapped := _wrapped_axes(work)) else ()
        wide = plan.call(tables.dilate, mask, self.dilate, *wraps) if self.dilate else mask
        frames = Frames(plan, wide, self.grid, self._grid_masks(work, wide, plan))

        def choose(node: Node) -> Node | None:
            if not _is_on_grid(node):
                return None
            frame, grid = frames.of(node), _packed_grid(node)
            if grid is None:
                return None
            if grid in dense:
                note(node, reason="one of the smallest grids")
                return None
            if follows(node):
                return self._behind(node, frames, plan)
            if isinstance(rule := find_rule(node), PadRule):
                before, geometry = facts(node.all_input_nodes[0]).mask, rule.geometry(node)
                if before is not None and geometry is not None:
                    return plan.grow(before, reach(geometry))
            return frames.mask(frame, grid)

        return choose

    def _behind(self, node: Node, frames: Frames, plan: _MaskBuilder) -> Node:
        """Where its sources are active: elsewhere it is what they give, also after commits."""
        rule, found = find_rule(node), []
        for source in grid_sources(node):
            mask, grid = facts(source).mask, layout_of(source).grid
            assert mask is not None and grid is not None
            geometry = rule.geometry(node) if rule else None
            if geometry is None:
                found.append(mask)
                continue
            moves = rule is not None and bool(rule.moves(node))
            of_frame = mask is frames.mask(frames.of(source), grid)
            if of_frame and (moves or _divides(geometry.out_grid, grid)):
                # Moved as it stands, or pooled, so that it covers the source's.
                found.append(frames.mask(frames.of(node), geometry.out_grid))
            else:
                found.append(plan.grow(mask, geometry if moves else reach(geometry)))
        return plan.union(found)

    def _grid_masks(self, work: list[Node], mask: Node, plan: _MaskBuilder) -> dict[Grid, Node]:
        """``mask`` on each grid; pooled in steps where a coarse grid divides a finer one."""
        grids = {grid for node in work if (grid := _packed_grid(node))}
        masks = {self.grid: mask}
        for grid in sorted(grids - {self.grid}, key=math.prod, reverse=True):
            finer = [g for g in masks if _divides(g, self.grid) and _divides(grid, g)]
            masks[grid] = plan.call(tables.grid_mask, masks[finer[-1]] if finer else mask, grid)
        return masks

    def _exact(self, work: list[Node], mask: Node, plan: _MaskBuilder) -> Choice:
        masks = self._grid_masks(work, mask, plan)

        def choose(node: Node) -> Node | None:
            grid = _packed_grid(node)
            if grid is None:
                return None
            if node.op == "placeholder":
                return masks[grid]
            rule = find_rule(node)
            assert rule is not None
            given = [facts(arg).mask for arg in node.all_input_nodes if is_edited(arg)]
            sources = [own for own in given if own is not None]
            if rule.is_global(node) or len(sources) < len(given):
                note(node, reason="an edit reaches every site")
                return None
            if moves := rule.moves(node):
                sources = [plan.grow(facts(x).mask, geometry) for x, geometry in moves]
            elif (geometry := rule.geometry(node)) is not None:
                read = grid_sources(node)
                images = read if len(read) > 1 else [rule.image(node)]
                sources = [plan.grow(facts(x).mask, reach(geometry)) for x in images]
            elif (own := facts(rule.image(node)).mask) is not None:
                reached = rule.reached(node, own, plan)
                sources = sources if reached is None else [reached]
            return plan.union(sources)

        return choose


def _packed_grid(node: Node) -> Grid | None:
    layout = facts(node).layout
    return layout.grid if layout and layout.packable else None


def _is_on_grid(node: Node) -> bool:
    layout = facts(node).layout
    return layout is not None and layout.grid is not None


def _wrapped_axes(work: list[Node]) -> tuple[bool, bool]:
    """Is some edited map padded circularly along its rows, along its columns?"""
    rows = columns = False
    for node in work:
        if isinstance(rule := find_rule(node), PadRule) and _packed_grid(node):
            geometry = rule.geometry(node)
            if geometry is not None and geometry.mode == "circular":
                (height, width), (high, wide) = geometry.in_grid, geometry.out_grid
                rows, columns = rows or high > height, columns or wide > width
    return rows, columns


def _divides(coarse: Grid, fine: Grid) -> bool:
    return all(b % a == 0 for a, b in zip(coarse, fine, strict=True))


class _MaskBuilder:
    """Plan nodes, each made once."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self._graph = graph
        self._made: dict[Any, Node] = {}

    def call(self, function: Callable[..., Any], *args: Any) -> Node:
        key = (function, *((type(arg), arg) for arg in args))
        if key not in self._made:
            with self._graph.inserting_before(self._graph.output_node()):
                node = self._graph.call_function(function, args)
            note(node, stage="plan")
            self._made[key] = node
        return self._made[key]

    def union(self, masks: Iterable[Node]) -> Node:
        """The sites of any of these."""
        distinct = list(dict.fromkeys(masks))
        return distinct[0] if len(distinct) == 1 else self.call(tables.union, *distinct)

    def grow(self, mask: Node | None, geometry: Geometry) -> Node:
        """The sites that read ``mask``, of a value that is computed in part."""
        assert mask is not None
        return self.call(tables.grow, mask, geometry)
