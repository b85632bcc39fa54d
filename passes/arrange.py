"""Rewrites that depend on where the grid lies: patches, pads, convolutions over frames."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from .analyze import AnalyzeLayout, interpret
from .canonicalize import VIEWS, Canonicalize
from .rewrites.patches import patches
from .rewrites.pictures import cut_picture, join_pictures, pad_picture, turn_picture
from .rewrites.products import over_frames, over_tokens

_PICTURES = (pad_picture, cut_picture, turn_picture, join_pictures)
_REWRITES = (patches, *_PICTURES, over_frames, over_tokens)


@dataclass(frozen=True)
class Arrange:
    """Rewrites in the order of the graph, each on the layouts of its operands. Requires a
    canonical graph and ensures one; layouts are to be analysed anew."""

    analyze: AnalyzeLayout

    def __call__(self, module: GraphModule) -> GraphModule:
        self.analyze.mark(module.graph)
        for node in list(module.graph.nodes):
            if node.op not in ("placeholder", "output"):
                arrange(node)
        return Canonicalize(VIEWS)(module)


def arrange(node: Node) -> Node:
    """The node that stands for ``node``, with its layout; those of its operands are known."""
    interpret(node)
    before, new = node.prev, next(filter(None, (rewrite(node) for rewrite in _REWRITES)), None)
    if new is None:
        return node
    while before.next is not node:
        before = before.next
        interpret(before)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new
