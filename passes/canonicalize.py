"""Brings a captured graph to the forms that the rules know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from .base import Pass
from .rewrite import Rewrites
from .rewrites import (
    attention,
    fills,
    frames,
    indices,
    joins,
    lines,
    merged_views,
    norms,
    pads,
    products,
    reductions,
    video,
    views,
)

aten = torch.ops.aten

_CHECKS = (aten._assert_tensor_metadata, aten._assert_async)

CANONICAL = Rewrites.declared_in(
    *(views, merged_views, fills, joins, indices, norms, products, pads, reductions),
    *(attention, frames, video),
)
"""Where several match one operator: a whole kernel is a product, before it is anything else."""


LINES = Rewrites.declared_in(lines)
"""Of operators as they were captured, before each is brought to another form."""


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Applies the rewrites until none applies to any node, and drops dead nodes.

    A second run changes nothing.
    """

    ensures: ClassVar[tuple[str, ...]] = ("canonical",)

    rewrites: Rewrites = CANONICAL

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = module.graph
        for node in list(graph.nodes):
            if getattr(node.target, "overloadpacket", None) in _CHECKS:
                graph.erase_node(node)
        LINES.apply(graph)
        self.rewrites.apply(graph)
        drop_dead_nodes(module)
        return module


def drop_dead_nodes(module: GraphModule) -> None:
    """Drawing random numbers is no effect either, once nothing reads them."""
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.recompile()
