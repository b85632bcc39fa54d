"""What an update has to give: the blended dense run, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .passes.blend import mask_name
from .passes.facts import facts
from .passes.graphs import Constant
from .passes.oracle import Oracle, values_by_node
from .plan import Plan
from .program import Program


@torch.no_grad()
def oracle(program: Program, plan: Plan, old: Sequence[Any], new: Sequence[Any]) -> Any:
    """The outputs for inputs ``new``, computed densely on the graph of ``program``.

    ``old`` are the recorded inputs; both are the leaves of a call.
    """
    dense, tables, runtime = program.graphs["dense"], program.plan(plan), program.runtime

    def read(leaves: Sequence[Any]) -> list[Any]:
        return [leaves[int(name.removeprefix("input."))] for name in dense.inputs]

    def results(tensors: Sequence[Tensor]) -> list[Any]:
        left = iter(tensors)
        outputs = runtime.sidecar.outputs
        return [x.value if isinstance(x, Constant) else next(left) for x in outputs]

    if tables.is_dense:
        outputs = results(dense.module(*read(runtime.edited_inputs(new, old, tables.masks))))
        return runtime.edited_outputs(outputs, results(dense.module(*read(old))), tables.masks)
    by_node = {
        node: tables.masks[mask_name(mask)]
        for node in dense.graph.nodes
        if (mask := facts(node).mask)
    }
    before = values_by_node(dense.module, read(old))
    run = Oracle(dense.module, before, by_node, program.config.norm)
    return results(run.run(*read(new)))


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
