"""Shapes of the update graphs, found by running all graphs without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from .base import Pass
from .facts import facts
from .graphs import Graphs
from .layout import Grid


@dataclass(frozen=True)
class PropagateShapes(Pass):
    """Sets ``val`` on every node of the update graphs, as with all sites of ``grid`` active.

    A size that is 1 then is 1 for every mask, and two values that can be added have the same
    sites for every mask. Finds how many of them there are at most.
    """

    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    ensures: ClassVar[tuple[str, ...]] = ("shapes",)
    graphs: ClassVar[tuple[str, ...]] = ("update",)

    grid: Grid

    def apply(self, graphs: Graphs) -> Graphs:
        items = max(spot.layout.items for spot in graphs.inputs if spot)
        shape = (items, *self.grid) if items > 1 else self.grid
        mask = torch.ones(shape, dtype=torch.bool, device="cpu")
        record, plan = graphs["record"], graphs["plan"]
        planned = plan.run({"mask": mask})
        tables = {name: x for name, x in planned.items() if not name.startswith("mask.")}
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            values = {name: _like(value) for name, value in _inputs(graphs).items()}
            device = _device(list(values.values()))
            values |= {name: _like(table, device) for name, table in tables.items()}
            values |= record.run(values)
            values |= {name: values[first] for name, first in graphs.copies.items()}
            for part in graphs.parts.values():
                if part.stage in self.graphs:
                    run = FakeTensorProp(part.module, mode)
                    given = (values[name] for name in part.inputs)
                    made = run.propagate_dont_convert_inputs(*given)
                    values = {**dict(zip(part.outputs, made, strict=True)), **values}
        sizes = (values[name].shape[dim] for name, dim in graphs.dynamic.items())
        return replace(graphs, most_rows=max(sizes, default=1))


def _inputs(graphs: Graphs) -> dict[str, Any]:
    """The inputs of the call that some graph reads."""
    values: dict[str, Any] = {}
    for part in graphs.parts.values():
        for node, name in zip(part.graph.find_nodes(op="placeholder"), part.inputs, strict=True):
            if name.startswith("input."):
                values.setdefault(name, (facts(node).recorded or node).meta["val"])
    return values


def _like(value: Any, device: torch.device | None = None) -> Any:
    """A tensor of the same kind, made in the current mode; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    where = device or value.device
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)


def _device(inputs: list[Any]) -> torch.device | None:
    return next((x.device for x in inputs if isinstance(x, torch.Tensor) and x.dim() > 1), None)
