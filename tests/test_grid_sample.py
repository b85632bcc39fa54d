"""Pictures sampled at constant places: masks go where the values go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen import tables
from torch import Tensor, nn

import sparsify
from sparsify import SparseModule
from tests.networks import MASKS, MaskRecipe

GRID, OUT = (9, 12), (7, 14)


class Sampled(nn.Module):
    """Convolutions around a sampler at places that are a parameter, or made in ``forward``."""

    def __init__(self, learnt: bool = False, batch: int = 1, **how: Any) -> None:
        super().__init__()
        self.how = {"align_corners": False, **how}
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        places = torch.rand(batch, *OUT, 2) * 2.4 - 1.2
        self.places = nn.Parameter(places) if learnt else None
        self.theta = [[0.0, -1.1, 0.1], [0.9, 0.1, 0.0]]

    def forward(self, x: Tensor) -> Tensor:
        places = self.places
        if places is None:
            theta = torch.tensor([self.theta], dtype=x.dtype).expand(len(x), 2, 3)
            places = F.affine_grid(theta, [len(x), 1, *OUT], align_corners=False)
        y: Tensor = self.last(F.grid_sample(self.first(x), places, **self.how).relu())
        return y


def wrapped(model: nn.Module, **config: Any) -> SparseModule:
    options = {"backend": "eager", "dilate": 0, "dense_share": 0.0, "dense_above": 1.0}
    return sparsify.sparsify(model.eval(), **{**options, **config})


def edited(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask if mask.dim() == 2 else mask[:, None], x + 1, x)


@settings(max_examples=30)
@given(
    mask=MASKS,
    mode=st.sampled_from(["bilinear", "nearest", "bicubic"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    corners=st.booleans(),
    learnt=st.booleans(),
    batch=st.integers(1, 3),
)
@torch.no_grad()
def test_exact_updates_equal_dense(
    mask: MaskRecipe, mode: str, padding: str, corners: bool, learnt: bool, batch: int
) -> None:
    how = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    model, active = Sampled(learnt, batch, **how).eval(), mask.build(GRID)
    x = torch.randn(batch, 3, *GRID)
    active = torch.stack([active.roll(2 * item, 1) for item in range(batch)])
    sparse = wrapped(model, policy="exact")
    _, baseline = sparse.record(x)
    new = edited(x, active)
    got = sparse.update(baseline, new, mask=active)
    torch.testing.assert_close(got, model(new), rtol=1e-4, atol=1e-5)
    assert sparse.report().share("packed") == 1.0


@torch.no_grad()
def test_an_edit_lies_where_the_values_go_under_fixed_masks_too() -> None:
    """The picture is turned by a right angle."""
    model = Sampled().eval()
    model.first = nn.Conv2d(3, 4, 1)
    sparse, x = wrapped(model), torch.randn(1, 3, *GRID)
    _, baseline = sparse.record(x)
    for at in range(0, GRID[1], 3):
        mask = torch.zeros(GRID, dtype=torch.bool)
        mask[1:3, at : at + 2] = True
        got = sparse.update(baseline, edited(x, mask), mask=mask)
        torch.testing.assert_close(got, model(edited(x, mask)), rtol=1e-4, atol=1e-5)
        assert not torch.equal(got, model(x))


@torch.no_grad()
def test_a_plan_is_made_again_for_other_places() -> None:
    """Tables depend on these weights."""
    model = Sampled(learnt=True).eval()
    sparse, x = wrapped(model, policy="exact"), torch.randn(1, 3, *GRID)
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[2:4, 3:6] = True
    sparse.record(x)
    plan = sparse.plan(mask)
    for _ in range(2):
        _, baseline = sparse.record(x)
        got = sparse.update(baseline, edited(x, mask), mask=plan)
        torch.testing.assert_close(got, model(edited(x, mask)), rtol=1e-4, atol=1e-5)
        assert model.places is not None
        model.places.copy_(torch.rand_like(model.places) * 2 - 1)


@torch.no_grad()
def test_tables_belong_to_the_weights_that_they_were_made_with(tmp_path: Any) -> None:
    """Whenever a plan is made: before an update, for a restriction, in two folders of one model."""
    model, x = Sampled(learnt=True).eval(), torch.randn(1, 3, *GRID)
    sparse, mask = wrapped(model, policy="exact"), torch.zeros(GRID, dtype=torch.bool)
    mask[2:5, 3:8] = True
    new = edited(x, mask)
    assert model.places is not None
    first, second = model.places.clone(), torch.rand_like(model.places) * 2 - 1
    want = {}
    for name, places in (("second", second), ("first", first)):
        model.places.copy_(places)
        sparse.export(tmp_path / name, x)
        want[name] = model(new)
    _, baseline = sparse.record(x)
    model.places.copy_(second)
    plan = sparse.plan(mask)
    with pytest.raises(sparsify.BaselineError, match="weights changed"):
        sparse.restrict(baseline, plan)
    model.places.copy_(first)
    for own in (baseline, sparse.restrict(baseline, plan)):
        got = sparse.update(own, new, mask=plan)
        torch.testing.assert_close(got, want["first"], rtol=1e-4, atol=1e-5)
    assert len(plan.tables) == 1
    for name in ("first", "second", "first"):
        folder = sparsify.load(tmp_path / name)
        got = folder.update(folder.record(x)[1], new, mask=plan)
        torch.testing.assert_close(got, want[name], rtol=1e-4, atol=1e-5)


class Frames(nn.Module):
    """Several pictures an item, each sampled elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.places = nn.Parameter(torch.rand(6, *OUT, 2) * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        apart = self.first(x).reshape(-1, 1, *x.shape[2:])
        taken = F.grid_sample(apart, self.places.repeat(len(x), 1, 1, 1), align_corners=False)
        y: Tensor = self.last(taken.view(len(x), 6, *OUT).relu())
        return y


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_several_pictures_an_item(batch: int) -> None:
    model, x = Frames().eval(), torch.randn(batch, 3, *GRID)
    sparse, mask = wrapped(model, policy="exact"), torch.rand(batch, *GRID) < 0.1
    _, baseline = sparse.record(x)
    got = sparse.update(baseline, edited(x, mask), mask=mask)
    torch.testing.assert_close(got, model(edited(x, mask)), rtol=1e-4, atol=1e-5)


class ByNorm(Sampled):
    """Places that a norm makes of weights: its statistics are no part of the plan."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.places is not None
        places = F.group_norm(self.places.permute(0, 3, 1, 2), 1).permute(0, 2, 3, 1) / 2
        return self.last(F.grid_sample(self.first(x), places, align_corners=False).relu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@torch.no_grad()
def test_half_precision_rounds_where_it_reads(dtype: torch.dtype, mode: str) -> None:
    """In wide pictures by many sites; no site that differs is left out."""
    x, mask = torch.randn(1, 1, 4, 600).to(dtype), torch.zeros(4, 600, dtype=torch.bool)
    mask[1:3, 100:500:7] = True
    places = torch.rand(1, 4, 900, 2).to(dtype) * 2 - 1
    how = {"mode": mode, "align_corners": False}
    before, after = F.grid_sample(x, places, **how), F.grid_sample(x + mask, places, **how)
    number = {"bilinear": 0, "nearest": 1, "bicubic": 2}[mode]
    reached = tables.sampled(mask, places, number, 0, False)
    assert not ((before != after)[0, 0] & ~reached).any()


def test_weights_that_cancel_hide_nothing() -> None:
    """A cubic's 0.59375 and -0.09375 times 9 and 57."""
    mask = torch.zeros(8, 176, dtype=torch.bool)
    mask[0, 8] = mask[2, 8] = True
    at = torch.tensor([[2 * 8.5 / 176 - 1, 2 * 1.0 / 8 - 1]]).view(1, 1, 1, 2)
    assert tables.sampled(mask, at, 2, 0, False).all()


class Drawn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, torch.rand(len(x), *OUT, 2), align_corners=False) + 1


class Given(nn.Module):
    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return F.grid_sample(x, places, align_corners=False) + 1


@pytest.mark.parametrize(
    "model", [Drawn(), Given(), ByNorm(learnt=True)], ids=["drawn", "given", "by a norm"]
)
@torch.no_grad()
def test_other_places_are_computed_whole(model: nn.Module) -> None:
    x, mask = torch.randn(1, 3, *GRID), torch.zeros(GRID, dtype=torch.bool)
    mask[2:4, 3:6] = True
    inputs = (torch.rand(1, *OUT, 2),) if isinstance(model, Given) else ()
    sparse = wrapped(model.eval())
    output, baseline = sparse.record(x, *inputs)
    torch.testing.assert_close(sparse.update(baseline, x, *inputs, mask=mask), output)
    reasons = [node.reason for node in sparse.report().fallbacks]
    assert "its grid is no constant" in reasons


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@torch.no_grad()
def test_exported(format: str, tmp_path: Any) -> None:
    sparse, x = wrapped(Sampled(learnt=True, batch=2)), torch.randn(2, 3, *GRID)
    mask = torch.rand(2, *GRID) < 0.1
    _, baseline = sparse.record(x)
    want = sparse.update(baseline, edited(x, mask), mask=mask)
    sparse.export(tmp_path / "folder", x, format=format)
    folder = sparsify.load(tmp_path / "folder")
    _, baseline = folder.record(x)
    got = folder.update(baseline, edited(x, mask), mask=mask)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
