"""Masks of their own for the items of a batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen.errors import BaselineError, MaskError
from torch import Tensor, nn

from sparsify import sparsify
from tests.networks import MASKS, MaskRecipe

GRID = (10, 12)


class Denoiser(nn.Module):
    """Convolutions, a norm and attention, under a condition for each item."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        y = torch.nn.functional.silu(self.norm(self.enter(x)) + time[:, None, None, None])
        tokens = y.flatten(2).transpose(1, 2)
        y = y + self.mix(tokens, tokens, tokens)[0].transpose(1, 2).reshape(y.shape)
        return {"sample": self.leave(y * sizes.sum()), "mean": y.mean((2, 3))}


def case(batch: int = 3) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(batch, 3, *GRID), "time": torch.randn(batch), "sizes": torch.ones(5)}
    return Denoiser().eval(), inputs


def edited(x: Tensor, masks: Tensor) -> Tensor:
    return torch.where(masks[:, None], torch.randn_like(x), x)


@cache
@torch.no_grad()
def recorded(policy: str) -> tuple[Any, ...]:
    """The batch, and each of its items alone."""
    model, inputs = case()
    sparse = sparsify(
        model, policy=policy, backend="eager", dense_share=0.0, dilate=1, dense_above=1.0
    )
    alone = []
    for index in range(3):
        item = {name: x if name == "sizes" else x[index : index + 1] for name, x in inputs.items()}
        alone.append((item, sparse.record(**item)[1]))
    return sparse, inputs, sparse.record(**inputs)[1], alone


@pytest.mark.parametrize("policy", ["exact", "fixed"])
@settings(max_examples=15)
@given(recipes=st.lists(MASKS, min_size=3, max_size=3))
@torch.no_grad()
def test_each_item_is_updated_as_if_alone(policy: str, recipes: list[MaskRecipe]) -> None:
    sparse, inputs, baseline, alone = recorded(policy)
    masks = torch.stack([recipe.build(GRID) for recipe in recipes])
    new = {**inputs, "x": edited(inputs["x"], masks)}
    got = sparse.update(baseline, mask=masks, **new)
    for index, (item, own) in enumerate(alone):
        item = {**item, "x": new["x"][index : index + 1]}
        want = sparse.update(own, mask=masks[index], **item)
        for name in want:
            torch.testing.assert_close(got[name][index : index + 1], want[name])
    if policy == "exact":
        torch.testing.assert_close(got, sparse(**new), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_commits_and_shared_masks_go_on_from_items() -> None:
    model, inputs = case()
    masks = torch.zeros(3, *GRID, dtype=torch.bool)
    masks[0, 2:4, 3:6], masks[2, 7:, :2] = True, True
    sparse = sparsify(model, policy="exact", backend="eager")
    _, baseline = sparse.record(**inputs)
    for plan in (masks, masks.flip(0), masks[0], sparse.plan(masks)):
        mask = plan if isinstance(plan, Tensor) else plan.mask
        x = edited(inputs["x"], mask.expand(3, *GRID))
        inputs = {**inputs, "x": x}
        got, baseline = sparse.update(baseline, mask=plan, commit=True, **inputs)
        torch.testing.assert_close(got, model(**inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sessions_take_a_mask_for_each_item() -> None:
    model, inputs = case(2)
    masks = torch.zeros(2, *GRID, dtype=torch.bool)
    masks[1, 1, 1] = True
    sparse = sparsify(model, policy="exact", backend="eager")
    with sparse.recording() as session:
        sparse(**inputs)
    new = {**inputs, "x": edited(inputs["x"], masks)}
    with session.editing(masks):
        got = sparse(**new)
    torch.testing.assert_close(got, model(**new), rtol=1e-4, atol=1e-5)


class Mixing(nn.Module):
    """Items influence each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@torch.no_grad()
def test_items_that_depend_on_each_other_are_refused() -> None:
    sparse = sparsify(Mixing().eval(), backend="eager")
    x = torch.randn(2, 3, *GRID)
    _, baseline = sparse.record(x)
    masks = torch.zeros(2, *GRID, dtype=torch.bool)
    masks[0, 0, 0] = True
    with pytest.raises(MaskError, match="give one mask"):
        sparse.update(baseline, x, mask=masks)


@torch.no_grad()
def test_changed_weights_are_found_before_items_are_recorded() -> None:
    model, inputs = case(2)
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(**inputs)
    model.enter.bias.add_(1)  # type: ignore[union-attr]
    masks = torch.zeros(2, *GRID, dtype=torch.bool)
    masks[0, 0, 0] = True
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(baseline, mask=masks, **inputs)
