"""Pictures sampled at constant places: masks go where the values go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
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


class Drawn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, torch.rand(len(x), *OUT, 2), align_corners=False) + 1


class Given(nn.Module):
    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return F.grid_sample(x, places, align_corners=False) + 1


@pytest.mark.parametrize("model", [Drawn(), Given()], ids=["drawn", "given"])
@torch.no_grad()
def test_other_places_are_computed_whole(model: nn.Module) -> None:
    x, mask = torch.randn(1, 3, *GRID), torch.zeros(GRID, dtype=torch.bool)
    mask[2:4, 3:6] = True
    inputs = (torch.rand(1, *OUT, 2),) if isinstance(model, Given) else ()
    sparse = wrapped(model)
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
