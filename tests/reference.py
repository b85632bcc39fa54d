"""What an update has to give, made without the compiler's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from sparsify.passes.analyze import AnalyzeLayout
from sparsify.passes.arrange import Arrange
from sparsify.passes.canonicalize import Canonicalize
from sparsify.passes.capture import capture
from sparsify.passes.layout import Layout
from sparsify.passes.masks import PropagateMasks
from sparsify.passes.oracle import Baseline, Oracle
from sparsify.passes.recompute import can_recompute, grid_sources
from sparsify.passes.rules import find_rule
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from tests.networks import Arguments, Recipe

Norm = Literal["updated", "baseline"]


@dataclass(frozen=True)
class Fixed:
    """The settings of policy "fixed"."""

    norm: Norm = "updated"
    dilate: int = 1
    dense_share: float = 0.0


FIXED = st.builds(
    Fixed,
    norm=st.sampled_from(["updated", "baseline"]),
    dilate=st.integers(0, 2),
    dense_share=st.sampled_from([0.0, 0.0, 0.3]),
)


class Reference:
    """The oracle on a graph of its own, with masks made without the compiler's tables."""

    def __init__(self, recipe: Recipe, fixed: Fixed) -> None:
        self.fixed = fixed
        self.module = capture(recipe.build(), recipe.inputs(), {}).module
        layouts = (Layout.image(recipe.inputs()[0].shape), None, None)
        analyze = AnalyzeLayout(layouts)
        for step in (Canonicalize(), Arrange(analyze), analyze):
            self.module = step(self.module)
        nodes = [node for node in self.module.graph.nodes if node.op != "output"]
        policy = PropagateMasks(recipe.grid, dilate=fixed.dilate, dense_share=fixed.dense_share)
        self._dense_grids = policy.dense_grids(nodes)
        self._nodes = nodes
        self._wraps = self._wrapped(0), self._wrapped(1)

    def widened(self, mask: Tensor) -> Tensor:
        """The active sites of the input."""
        return _dilate(mask, self.fixed.dilate, self._wraps)

    def _wrapped(self, axis: int) -> bool:
        """Is a map on a grid padded circularly along this axis?"""
        return any(
            node.target is torch.ops.aten.pad.default
            and node.args[2:3] == ("circular",)
            and isinstance(layout := node.meta["layout"], Layout)
            and layout.packable
            and any(node.args[1][2 * (1 - axis) :][:2])
            for node in self._nodes
        )

    def masks(self, mask: Tensor) -> dict[Node, Tensor]:
        """The active mask of every node that is not computed whole."""
        wide = self.widened(mask).double()[None]
        masks: dict[Node, Tensor] = {}
        for node in self._nodes:
            layout = node.meta["layout"]
            if not isinstance(layout, Layout) or not layout.packable:
                continue
            if layout.grid in self._dense_grids:
                continue
            pooled = F.adaptive_max_pool2d(wide, layout.grid)[0] > 0
            if self._follows(node) and all(source in masks for source in grid_sources(node)):
                masks[node] = _behind(node, masks, pooled, wide)
                continue
            is_pad = node.target is torch.ops.aten.pad.default and layout.is_image
            before = masks.get(node.args[0]) if is_pad else None
            if before is not None:
                masks[node] = F.pad(before.double()[None], node.args[1], *node.args[2:3])[0] > 0
            else:
                masks[node] = pooled
        return masks

    def _follows(self, node: Node) -> bool:
        rule = find_rule(node)
        return rule is not None and rule.cheap and can_recompute(node)

    def update(self, before: Arguments, after: Arguments, mask: Tensor) -> Any:
        """The contract, spelt out."""
        return self.commit(self.record(before), after, mask)[0]

    def record(self, inputs: Arguments) -> dict[Node, Any]:
        """Every value by node."""
        baseline = Baseline(self.module)
        baseline.run(*inputs)
        return baseline.env

    def commit(
        self, values: dict[Node, Any], after: Arguments, mask: Tensor
    ) -> tuple[Any, dict[Node, Any]]:
        """The output, and every value of the edited run."""
        oracle = Oracle(self.module, values, self.masks(mask), self.fixed.norm)
        return oracle.run(*after), oracle.env

    def active_outputs(self, mask: Tensor) -> list[Tensor | None]:
        """Per output the sites that an update may change, broadcast to its shape; None: all."""
        masks = self.masks(mask)
        outputs = tree_leaves(self.module.graph.output_node().args[0])
        return [_on_axes(node, masks[node]) if node in masks else None for node in outputs]


def _behind(node: Node, masks: dict[Node, Tensor], pooled: Tensor, wide: Tensor) -> Tensor:
    """The sites of what comes from its sources alone: those that read an active one."""
    found = torch.zeros_like(pooled)
    for source in grid_sources(node):
        mask, grid = masks[source], source.meta["layout"].grid
        if tuple(mask.shape) == tuple(pooled.shape):
            found |= mask
            continue
        of_grid = torch.equal(mask, F.adaptive_max_pool2d(wide, grid)[0] > 0)
        if of_grid and all(a % b == 0 for a, b in zip(grid, pooled.shape, strict=True)):
            found |= pooled
        else:
            image: Any = node.target(mask.double()[None, None], *node.args[1:], **node.kwargs)
            found |= image[0, 0] > 0
    return found


def _dilate(mask: Tensor, pixels: int, wraps: tuple[bool, bool]) -> Tensor:
    wide = torch.zeros_like(mask)
    reach = range(-pixels, pixels + 1)
    for y, x in mask.nonzero().tolist():
        rows, columns = (
            [(at + step) % size for step in reach if wrap or 0 <= at + step < size]
            for at, size, wrap in zip((y, x), mask.shape, wraps, strict=True)
        )
        wide[torch.tensor(rows)[:, None], columns] = True
    return wide


def _on_axes(node: Node, mask: Tensor) -> Tensor:
    layout: Layout = node.meta["layout"]
    space, at = layout.space, layout.site_dim
    beside = [torch.ones(size, dtype=torch.bool) for size in (space.before, space.after)]
    line = torch.cat([beside[0], mask.flatten().repeat(space.outer), beside[1]])
    after = len(layout.dims) - at - (1 if layout.merged else 2)
    return (
        line.reshape(-1, *[1] * after)
        .expand(*layout.shape[:at], -1, *layout.shape[len(layout.dims) - after :])
        .reshape(layout.shape)
    )
