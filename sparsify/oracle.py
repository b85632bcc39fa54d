"""What an update has to give: the blended dense run, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .baseline import Baseline
from .passes.facts import facts
from .passes.oracle import Oracle, values_by_node
from .plan import Plan


@torch.no_grad()
def oracle(baseline: Baseline, plan: Plan, old: tuple[Any, ...], new: tuple[Any, ...]) -> Any:
    """The outputs for inputs ``new``, computed densely on the recorded graph.

    ``old`` are the recorded inputs; both are the leaves of a call.
    """
    program = baseline.program
    graph, tables = program.graphs.record, program.plan(plan)
    if tables.is_dense:
        inputs = program.edited_inputs(new, old, tables.masks)
        outputs = program.graphs.dense(*inputs)
        return program.edited_outputs(outputs, program.graphs.dense(*old), tables.masks)
    by_node = {
        node: tables.masks[mask.name]
        for node in graph.graph.nodes
        if (mask := facts(node).mask) is not None
    }
    return Oracle(graph, values_by_node(graph, old), by_node, program.config.norm).run(*new)[0]


def relative(values: Any, references: Any) -> float:
    """Largest difference over the largest magnitude, the worst of all outputs."""
    pairs = zip(tree_leaves(values), tree_leaves(references), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point()]
    if any(a.isnan().any() != b.isnan().any() for a, b in tensors):
        return float("nan")
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.numel() else 0.0
        for a, b in tensors
    )
