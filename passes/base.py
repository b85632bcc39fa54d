"""What a pass is."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch.fx import GraphModule

from .graphs import Graphs, NamedGraph


class Pass:
    """A rewrite of graphs; subclasses are frozen dataclasses, whose fields are its options.

    ``requires`` and ``ensures`` name what has to hold before and what holds afterwards:
    :data:`.verify.PROPERTIES`. ``graphs`` are those that it rewrites, one by one: the joint graph,
    or some that :class:`.Partition` cuts from it, by name or by stage.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[tuple[str, ...]] = ()
    graphs: ClassVar[tuple[str, ...]] = ("joint",)

    @property
    def name(self) -> str:
        return type(self).__name__

    def __call__(self, module: GraphModule) -> GraphModule:
        """One graph, rewritten; it may be changed in place. The code of a :class:`.NamedGraph` may
        be left as it was: what runs it generates it."""
        raise NotImplementedError

    def apply(self, graphs: Graphs) -> Graphs:
        """All graphs of the model, with those rewritten that are this pass's."""
        joint, parts = graphs.joint, dict(graphs.parts)
        if "joint" in self.graphs:
            joint = self(joint)
        done: dict[NamedGraph, NamedGraph] = {}  # one graph may have two names
        for name, part in graphs.parts.items():
            if name in self.graphs or part.stage in self.graphs:
                done[part] = done.get(part) or replace(part, module=self(part.module))
                parts[name] = done[part]
        return replace(graphs, joint=joint, parts=parts)
