"""The captured model of a call, from which the programs of all parts are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from torch.fx import Graph, GraphModule
from torch.utils._pytree import TreeSpec

from .numbers import capture_call
from .passes.canonicalize import Canonicalize
from .passes.graphs import Graphs
from .passes.pipeline import Pipeline
from .passes.verify import Inspect
from .signature import Call, Signature

CANONICAL = Pipeline((Canonicalize(),))
"""What comes before the layouts of inputs are known."""


@dataclass(frozen=True)
class Canonical:
    """The graph in canonical form. It takes inputs of this ``signature``, flattened."""

    graphs: Graphs
    signature: Signature
    output_spec: TreeSpec
    reset: frozenset[int]
    """See :class:`.passes.capture.Captured`."""

    @staticmethod
    def of(model: nn.Module, call: Call, may_be_tensors: bool) -> Canonical:
        """Captures ``model``. Raises :class:`CaptureError`."""
        captured, call = capture_call(model, call, may_be_tensors)
        graphs = CANONICAL(Graphs(captured.module), Inspect.from_environment())
        return Canonical(graphs, call.signature, captured.output_spec, captured.reset)

    def copied(self) -> Graphs:
        """For passes, which write to the graph that they are given."""
        joint, graph = self.graphs.joint, Graph()
        graph.output(graph.graph_copy(joint.graph, {}))
        graph.output_node().meta.update(joint.graph.output_node().meta)
        return replace(self.graphs, joint=GraphModule(joint, graph).eval())
