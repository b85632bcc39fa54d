"""Small functions as graphs, and graphs as text."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import torch
from sparsify.passes.analyze import AnalyzeLayout
from sparsify.passes.base import Pass
from sparsify.passes.canonicalize import Canonicalize
from sparsify.passes.capture import capture
from sparsify.passes.constants import Constants
from sparsify.passes.contiguous import Contiguous, ContiguousResults
from sparsify.passes.graphs import Graphs
from sparsify.passes.layout import Layout
from sparsify.passes.masks import PropagateMasks
from sparsify.passes.one_run import OfOneRun
from sparsify.passes.pack import Pack
from sparsify.passes.partition import Partition
from sparsify.passes.pipeline import Pipeline
from sparsify.passes.shapes import PropagateShapes
from sparsify.passes.verify import Inspect
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

IMAGE = (1, 4, 8, 8)


class Lambda(nn.Module):
    """A function of one image as a model, with one convolution at hand."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def captured(function: Callable[[Any, Tensor], Any]) -> GraphModule:
    return capture(Lambda(function).eval(), (torch.randn(IMAGE),), {}).module


def rewritten(
    function: Callable[[Any, Tensor], Any], *more: Pass, shapes: bool = False, **options: Any
) -> Graphs:
    """With ``more`` passes behind the partition, which may need ``shapes``."""
    pipeline = Pipeline(
        (
            Canonicalize(),
            AnalyzeLayout((Layout.image(IMAGE),)),
            Constants(),
            PropagateMasks((8, 8), **{"dilate": 0, **options}),
            Pack(),
            Partition(),
            OfOneRun(),
            *([PropagateShapes((8, 8))] if shapes else ()),
            *more,
            ContiguousResults(),
            Contiguous(),
        )
    )
    return pipeline(Graphs(captured(function)), Inspect())


def text(graph: Graph) -> str:
    """One line a call: ``name = operator(node arguments)``; weights and names of inputs as is."""
    lines = []
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            name = getattr(node.target, "__name__", str(node.target)).removesuffix(".default")
            lines.append(f"{node.name} = {name}({', '.join(map(str, node.all_input_nodes))})")
    return "\n".join(lines)


def expect(graph: Graph, expected: str) -> None:
    assert text(graph) == dedent(expected).strip()
