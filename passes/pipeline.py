"""The passes in order, from a captured graph to the three graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from .analyze import AnalyzeLayout
from .canonicalize import Canonicalize
from .channels_last import ChannelsLast
from .constants import FoldConstants
from .contiguous import Contiguous
from .fuse import Fuse
from .masks import PropagateMasks
from .pack import Pack
from .partition import Partition, ThreeGraphs
from .shapes import propagate_shapes

Observer = Callable[[str, GraphModule], None]
"""Called with the name of a stage and the joint graph after it."""


@dataclass(frozen=True)
class Pipeline:
    """Everything between capture and emission."""

    analyze: AnalyzeLayout
    masks: PropagateMasks
    pack: Pack
    fuse: Fuse | None = None
    """Where there are kernels for what it swaps in."""
    order: ChannelsLast | None = None
    """Where the dense graphs run as they stand."""

    def __call__(self, module: GraphModule, observe: Observer | None = None) -> ThreeGraphs:
        for step in (Canonicalize(), FoldConstants(), self.analyze, self.masks, self.pack):
            module = step(module)
            if observe is not None:
                observe(type(step).__name__, module)
        graphs = Partition()(module)
        if self.fuse is not None:
            graphs = replace(graphs, most_rows=propagate_shapes(graphs, self.masks.grid))
            for update in graphs.updates:
                self.fuse(update)
        if self.order is not None:
            for dense in (graphs.record, graphs.dense):
                self.order(dense)
        for remembered in (graphs.record, graphs.dense, graphs.conditions, graphs.commit):
            Contiguous(results=True)(remembered)
        for update in dict.fromkeys((graphs.update, graphs.again)):
            Contiguous(results=False)(update)
        return graphs
