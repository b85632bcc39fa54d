"""The format of a weight is an argument, which a cost model chooses, and exports are plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen.errors import VerifyError
from sparsify.codegen.gather_matmul import cpp
from sparsify.passes.costs import Costs
from sparsify.passes.graphs import Graphs
from sparsify.passes.verify import Inspect
from torch import Tensor, nn

import sparsify
from sparsify import SparseModule

GRID = (12, 12)
# Nine operators, each a sum of at most 9 * 32 products of values below 5, whose rounding errors add
# up like a random walk: sqrt(288) = 17 units.
WITHIN = {"rtol": 0.0, "atol": 9 * 17 * 5 * torch.finfo(torch.float32).eps}
needs_compiler = pytest.mark.skipif(
    not cpp.runs(torch.device("cpu"), torch.float32), reason="there is no C++ compiler"
)


class Net(nn.Module):
    """Weights that fit into panels, and some that do not: odd widths, groups, made in the call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.one, self.up = nn.Conv2d(32, 32, 1), nn.ConvTranspose2d(32, 32, 4, 2, 1)
        self.layer, self.style = nn.Linear(32, 32), nn.Parameter(torch.randn(32, 32, 1, 1) / 8)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = F.silu(self.grouped(F.silu(self.enter(x))))
        low = F.conv2d(self.one(F.avg_pool2d(y, 2)), self.style * style)
        low = self.layer(low.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (6, 6))
        return self.leave(self.up(low) + y)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A picture, the edited one, a condition, and the mask."""
    torch.manual_seed(1)
    x, mask = torch.randn(1, 3, *GRID), torch.zeros(GRID, dtype=torch.bool)
    mask[3:5, 4:7] = True
    return x, torch.where(mask, x + 1, x), torch.tensor(0.7), mask


def wrapped(costs: Costs, dtype: torch.dtype = torch.float32) -> SparseModule:
    """With its program made for these costs."""
    options = {"policy": "exact", "dense_share": 0.0, "dense_above": 1.0, "costs": costs}
    sparse = sparsify.sparsify(Net().to(dtype).eval(), backend="eager", **options)
    x, _, style, _ = inputs()
    sparse.record(x.to(dtype), style.to(dtype))
    return sparse


def graphs(sparse: SparseModule, dtype: torch.dtype = torch.float32) -> Graphs:
    x, _, style, _ = inputs()
    return sparse._engine.program(sparse._engine.bind((x.to(dtype), style.to(dtype)), {})).graphs


def formats(made: Graphs) -> Iterator[tuple[str, Any]]:
    """Every node of every graph that takes a format: its weight's own name, and the format."""
    for part in made.parts.values():
        for node in part.graph.nodes:
            if "format" in node.kwargs:
                yield node.name, node.kwargs["format"]


COSTS = st.builds(
    Costs,
    formats=st.sampled_from([("panels",), ()]),
    small_grid=st.sampled_from([0, 36, 1024]),
    few_rows=st.sampled_from([0, 20, 512]),
    typical_edit=st.sampled_from([0.0, 0.1, 1.0]),
)


@needs_compiler
@settings(max_examples=8)
@given(COSTS)
@torch.no_grad()
def test_costs_change_no_numbers(costs: Costs) -> None:
    x, edited, style, mask = inputs()
    sparse = wrapped(costs)
    _, baseline = sparse.record(x, style)
    got = sparse.update(baseline, edited, style, mask=mask)
    want = sparse(edited, style)
    torch.testing.assert_close(got, want, **WITHIN)


@needs_compiler
def test_formats_are_the_cost_model_s() -> None:
    chosen = dict(formats(graphs(wrapped(Costs()))))
    stored = {name: form for name, form in chosen.items() if name.startswith("prepack")}
    # enter, up, one and layer; grouped and leave do not fit, the styled weight is made in the call
    assert sorted(stored.values()) == ["panels"] * 4 + ["plain"] * 3, stored
    no_rows = dict(formats(graphs(wrapped(Costs(few_rows=0)))))
    assert list(no_rows.values()).count("panels") < list(chosen.values()).count("panels")
    assert not any("linear" in name for name, form in no_rows.items() if form == "panels")
    assert {form for _, form in formats(graphs(wrapped(Costs(formats=()))))} == {"plain"}
    made = graphs(wrapped(Costs(), torch.float64), torch.float64)
    assert {form for _, form in formats(made)} == {"plain"}


@needs_compiler
def test_small_grids_are_the_cost_model_s() -> None:
    """For the convolution of a coarse map that is computed whole."""

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            low = self.low(F.avg_pool2d(x, 2)).relu()
            return self.high(x) + F.interpolate(low, scale_factor=2.0)

    def convolutions(costs: Costs) -> int:
        sparse = sparsify.sparsify(Coarse().eval(), backend="eager", dense_share=0.5, costs=costs)
        update = sparse.graphs(torch.randn(1, 32, 24, 24))["update"].graph
        return len(update.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default))

    limits = (143, 144)
    assert [convolutions(Costs(small_grid=limit)) for limit in limits] == [1, 0]
    assert convolutions(Costs(formats=())) == 1


@needs_compiler
def test_a_weight_read_in_another_format_is_no_graph() -> None:
    joint = graphs(wrapped(Costs())).joint
    made = Graphs(joint, frozenset({"packed"}), ("Pack",))
    Inspect()(made)
    node = next(n for n in joint.graph.nodes if n.name.startswith("gather_conv"))
    node.update_kwarg("format", "tiles")
    with pytest.raises(VerifyError, match="which is panels, as tiles"):
        Inspect()(made)


@needs_compiler
@torch.no_grad()
def test_an_export_is_plain_and_leaves_the_program_as_it_is(tmp_path: Path) -> None:
    x, edited, style, mask = inputs()
    sparse = wrapped(Costs())
    _, baseline = sparse.record(x, style)
    before = sparse.update(baseline, edited, style, mask=mask)
    chosen = list(formats(graphs(sparse)))
    sparse.export(tmp_path / "net", x, style, format="pt2")
    assert list(formats(graphs(sparse))) == chosen
    assert torch.equal(sparse.update(baseline, edited, style, mask=mask), before)
    loaded = sparsify.load(tmp_path / "net")
    got = loaded.update(loaded.record(x, style)[1], edited, style, mask=mask)
    torch.testing.assert_close(got, before, **WITHIN)
