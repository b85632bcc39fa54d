"""The update from a recorded run, none of whose sites a commit has changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sparsify.codegen import ops
from torch.fx import GraphModule

from .base import Pass
from .graphs import Graphs


@dataclass(frozen=True)
class OfOneRun(Pass):
    """What the update recomputes is right for all sites, so nothing is selected from copies."""

    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    graphs: ClassVar[tuple[str, ...]] = ("update", "update_key", "update_reuse")

    def __call__(self, module: GraphModule) -> GraphModule:
        for node in module.graph.find_nodes(op="call_function", target=ops.of_one_run):
            node.replace_all_uses_with(node.args[1])
        module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        return module

    def apply(self, graphs: Graphs) -> Graphs:
        """Without arguments that it does not read; where nothing is selected, one graph is both."""
        parts = dict(graphs.parts)
        for name in self.graphs:
            again = name.replace("update", "again")
            if again not in parts:
                continue
            if parts[again].graph.find_nodes(op="call_function", target=ops.of_one_run):
                parts[name] = replace(parts[name], module=self(parts[name].module)).pruned()
            else:
                parts[again] = parts[name]
        return replace(graphs, parts=parts)
