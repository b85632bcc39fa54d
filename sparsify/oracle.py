"""What an update has to give: the blended dense run, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .forecast import weighed
from .passes.blend import mask_name
from .passes.facts import facts
from .passes.graphs import Constant
from .passes.oracle import Dense, Oracle, Taken
from .plan import Plan
from .program import Program
from .schedule import Schedule


@torch.no_grad()
def oracle(program: Program, plan: Plan, old: Sequence[Any], new: Sequence[Any]) -> Any:
    """The outputs for inputs ``new``, computed densely on the graph of ``program``.

    ``old`` are the recorded inputs; both are the leaves of a call.
    """
    every = Schedule.every(1, 1)
    return scheduled(program, plan, every, every, [old], [new])[0]


@torch.no_grad()
def scheduled(
    program: Program,
    plan: Plan,
    recorded_by: Schedule,
    edited_by: Schedule,
    olds: Sequence[Sequence[Any]],
    news: Sequence[Sequence[Any]],
) -> list[Any]:
    """The same for a run of several steps, recorded and edited by schedules that reuse the part
    for which ``program`` is cut."""
    reference, crossings = _Reference(program, plan), program.graphs.joint.meta.get("crossing", ())
    kept: list[Taken] = []
    changed: list[Taken] = []
    outputs = []
    for step, leaves in enumerate(zip(olds, news, strict=True)):
        taken = _taken(recorded_by, step, kept), _taken(edited_by, step, changed)
        output, before, after = reference.step(*leaves, *taken)
        kept.append(before.crossing(crossings))
        changed.append(after.crossing(crossings))
        outputs.append(output)
    return outputs


def _taken(schedule: Schedule, step: int, known: Sequence[Taken]) -> Taken | None:
    if step in schedule.keys:
        return None
    row = schedule.rows[step]
    weights = [weight for _, weight in row]
    return {own: weighed([known[key][own] for key, _ in row], weights) for own in known[0]}


class _Reference:
    """The dense graph of a program, run before and after an edit."""

    def __init__(self, program: Program, plan: Plan) -> None:
        self._dense, self._tables = program.graphs["dense"], program.plan(plan)
        self._runtime, self._norm = program.runtime, program.config.norm

    def step(
        self, old: Sequence[Any], new: Sequence[Any], taken_old: Taken | None, taken: Taken | None
    ) -> tuple[list[Any], Dense, Dense]:
        """The outputs of the edited run, and both runs."""
        module, masks = self._dense.module, self._tables.masks
        before = Dense(module, taken_old)
        recorded = self._results(before.run(*self._read(old)))
        if self._tables.is_empty:  # nothing changed, so no forecast is another one
            return recorded, before, before
        if self._tables.is_dense:
            after = Dense(module, taken)
            outputs = self._results(
                after.run(*self._read(self._runtime.edited_inputs(new, old, masks)))
            )
            return self._runtime.edited_outputs(outputs, recorded, masks), before, after
        by_node = {
            node: masks[mask_name(mask)]
            for node in self._dense.graph.nodes
            if (mask := facts(node).mask)
        }
        after = Oracle(module, dict(before.env), by_node, self._norm, taken)
        return self._results(after.run(*self._read(new))), before, after

    def _read(self, leaves: Sequence[Any]) -> list[Any]:
        return [leaves[int(name.removeprefix("input."))] for name in self._dense.inputs]

    def _results(self, tensors: Sequence[Tensor]) -> list[Any]:
        left = iter(tensors)
        outputs = self._runtime.sidecar.outputs
        return [x.value if isinstance(x, Constant) else next(left) for x in outputs]


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
