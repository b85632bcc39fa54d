"""Shapes of the update graphs, found by running all graphs without data."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from .layout import Grid
from .partition import ThreeGraphs


def propagate_shapes(graphs: ThreeGraphs, grid: Grid) -> int:
    """Sets ``val`` on every node of update and commit, as with all sites of ``grid`` active.

    A size that is 1 then is 1 for every mask, and two values that can be added have the same
    sites for every mask. Returns how many rows a table has at most.
    """
    tables, _ = graphs.plan(torch.ones(grid, dtype=torch.bool, device="cpu"))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        inputs = [_like(n.meta["val"]) for n in graphs.record.graph.find_nodes(op="placeholder")]
        given = [_like(table, _device(inputs)) for table in tables]
        _, kept, conditions = graphs.record(*inputs)
        arguments = (*inputs, *given, *kept, *conditions)
        for module in graphs.updates:
            FakeTensorProp(module, mode).propagate_dont_convert_inputs(*arguments)
    return max((len(table) for table in tables), default=1)


def _like(value: Any, device: torch.device | None = None) -> Any:
    """A tensor of the same kind, made in the current mode; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    where = device or value.device
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)


def _device(inputs: list[Any]) -> torch.device | None:
    return next((x.device for x in inputs if isinstance(x, torch.Tensor) and x.dim() > 1), None)
