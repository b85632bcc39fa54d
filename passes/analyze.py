"""Abstract interpretation: which nodes an edit reaches, and what their axes mean.

Some rewrites depend on where the grid lies: patches, pads and strides of pictures whose rows and
columns are not the last axes, convolutions over frames. They apply on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from sparsify.codegen.errors import CaptureError
from torch.fx import Graph, GraphModule, Node

from .base import Pass
from .canonicalize import drop_dead_nodes
from .facts import facts, note
from .layout import Layout, Unmatched
from .rewrite import Rewrites
from .rewrites import at_sites, merged_views, patches, pictures
from .rules import find_rule
from .rules.base import draws, is_drawn

ARRANGED = Rewrites.declared_in(patches, pictures, at_sites, merged_views)


def interpret(node: Node) -> None:
    """Sets ``edited``, ``varies`` (is it another value for other inputs?), ``layout`` and
    ``reason``; those of its operands are known."""
    if node.op == "placeholder":
        return
    operands = [facts(arg) for arg in node.all_input_nodes]
    varies = any(operand.varies for operand in operands) and not is_drawn(node)
    edited = any(operand.edited for operand in operands)
    note(node, edited=edited, varies=varies, layout=None, reason="")
    if edited:
        _refuse_draws(node)
        _find_layout(node)


@dataclass(frozen=True)
class AnalyzeLayout(Pass):
    """Sets ``edited`` and ``layout`` on every node, and ``reason`` where no rule matches.

    ``inputs`` gives the layout of each placeholder, None for those that an edit leaves alone.
    A node without a layout is computed densely, and so is everything behind it.
    """

    requires: ClassVar[tuple[str, ...]] = ("canonical",)
    ensures: ClassVar[tuple[str, ...]] = ("layouts",)

    inputs: tuple[Layout | None, ...]
    rewrites: Rewrites = ARRANGED

    def __call__(self, module: GraphModule) -> GraphModule:
        self.interpreted(module.graph)
        drop_dead_nodes(module)
        return module

    def interpreted(
        self, graph: Graph, visit: Callable[[Node], None] = interpret
    ) -> dict[Node, Node]:
        """In the order of the graph, so that layouts of operands are known; returns what stands
        for each node that is replaced."""
        placeholders = graph.find_nodes(op="placeholder")
        for node, layout in zip(placeholders, self.inputs, strict=True):
            note(node, edited=layout is not None, layout=layout, varies=True)
        return self.rewrites.apply(graph, visit)


def _refuse_draws(node: Node) -> None:
    """What is drawn again in an update would change the picture everywhere."""
    if draws(node):
        raise CaptureError(
            f"{node.name} ({node.target}) draws random numbers by edited values, so no update "
            "could repeat the recorded picture: pass the numbers as an input"
        )


def _find_layout(node: Node) -> None:
    rule = find_rule(node)
    if _all_plain(node):
        note(node, layout=Layout.of_plain(node.meta["val"].shape))
        return
    if rule is None:
        refusal = facts(node).refusal
        note(node, reason="no rule for this operator" + (f" ({refusal})" if refusal else ""))
        return
    try:
        layout = rule.layout(node)
    except Unmatched as refusal:
        note(node, reason=str(refusal))
        return
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and layout.shape != tuple(value.shape):
        note(node, reason=f"the rule expects shape {layout.shape}")
        return
    layouts = (facts(arg).layout for arg in node.all_input_nodes if facts(arg).edited)
    items = {own.items for own in layouts if own is not None and own.grid}
    if items == {1}:
        layout = layout.without_items()
    elif layout.grid and items != {layout.items}:
        note(node, reason="the rule does not keep the items of the batch apart")
        return
    note(node, layout=layout)


def _all_plain(node: Node) -> bool:
    """No operand lies on a grid: whatever the operator, its result does not either."""
    layouts = [facts(arg).layout for arg in node.all_input_nodes if facts(arg).edited]
    known = all(isinstance(layout, Layout) and layout.grid is None for layout in layouts)
    return known and isinstance(node.meta.get("val"), torch.Tensor)
