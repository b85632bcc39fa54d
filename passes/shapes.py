"""Shapes of the update graphs, found by running all graphs without data."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node

from .facts import facts
from .layout import Grid
from .partition import ThreeGraphs


def propagate_shapes(graphs: ThreeGraphs, grid: Grid) -> int:
    """Sets ``val`` on every node of update and commit, as with all sites of ``grid`` active.

    A size that is 1 then is 1 for every mask, and two values that can be added have the same
    sites for every mask. Returns how many rows a table has at most.
    """
    given = graphs.record.graph.find_nodes(op="placeholder")
    items = max(own.items for n in given if (own := facts(n).layout) is not None)
    shape = (items, *grid) if items > 1 else grid
    tables, _ = graphs.plan(torch.ones(shape, dtype=torch.bool, device="cpu"))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        inputs = [_like(n.meta["val"]) for n in given]
        sent = [_like(table, _device(inputs)) for table in tables]
        _, kept, conditions = graphs.record(*inputs)
        arguments = (*inputs, *sent, *kept, *conditions)
        for module in graphs.updates:
            _Noting(module).run(*arguments)
    return max((len(table) for table in tables), default=1)


class _Noting(Interpreter):
    """Leaves every value on its node."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = result
        return result


def _like(value: Any, device: torch.device | None = None) -> Any:
    """A tensor of the same kind, made in the current mode; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    where = device or value.device
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)


def _device(inputs: list[Any]) -> torch.device | None:
    return next((x.device for x in inputs if isinstance(x, torch.Tensor) and x.dim() > 1), None)
