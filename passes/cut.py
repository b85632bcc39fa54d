"""Reshapes that cut a grid into patches or windows, once it is known where the grid lies."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule

from .analyze import AnalyzeLayout, interpret
from .canonicalize import VIEWS, Canonicalize
from .forms.patches import patches


@dataclass(frozen=True)
class CutPatches:
    """Rewrites them as pixel (un)shuffles. Requires a canonical graph and ensures one; layouts
    are to be analysed anew."""

    analyze: AnalyzeLayout

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = self.analyze(module).graph
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            interpret(node)
            before, new = node.prev, patches(node)
            if new is None:
                continue
            while before.next is not node:
                before = before.next
                interpret(before)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        return Canonicalize(VIEWS)(module)
