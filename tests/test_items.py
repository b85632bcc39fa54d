"""Masks of their own for the items of a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparsify.codegen.errors import BaselineError, MaskError
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparsify import load, sparsify
from sparsify.program import Program
from tests import networks
from tests.gpu_free.as_on_cuda import as_on_cuda
from tests.networks import MASKS, Arguments, MaskRecipe, Recipe, recipes
from tests.reference import FIXED, Fixed
from tests.rounding import assert_close, tolerance

GRID = (10, 12)
FEWER = settings(max_examples=settings.default.max_examples // 3)


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


@torch.no_grad()
def test_exported_folders_take_a_mask_for_each_item(tmp_path: Path) -> None:
    model, inputs = case(2)
    masks = torch.zeros(2, *GRID, dtype=torch.bool)
    masks[0, 2:4, 3:6], masks[1, 7:, :2] = True, True
    sparse = sparsify(model, backend="eager", dense_above=1.0)
    sparse.export(tmp_path / "edit", **inputs)
    loaded = load(tmp_path / "edit")
    (_, baseline), (_, recorded) = sparse.record(**inputs), loaded.record(**inputs)
    new = {**inputs, "x": edited(inputs["x"], masks | masks.flip(0))}
    for mask in (masks, masks.flip(0), masks[0]):
        want = sparse.update(baseline, mask=mask, **new)
        torch.testing.assert_close(loaded.update(recorded, mask=mask, **new), want)


class Mixing(nn.Module):
    """Items influence each other between two convolutions."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.mix(self.enter(x)))


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "reversed": lambda x: x.flip(0),
    "batch statistics": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "other order": lambda x: torch.cat([x[1:], x[:1]]),
    "roll": lambda x: x + x.roll(1, 0),
    "pairs": lambda x: (x[:, None] * x[None]).sum(1),
    "one picture": lambda x: x.flatten(0, 1)[None].softmax(1).view_as(x),
    "running sum": lambda x: x.cumsum(0),
}


@pytest.mark.parametrize("name", MIXES)
@torch.no_grad()
def test_items_that_depend_on_each_other_follow_each_other(name: str) -> None:
    torch.manual_seed(0)
    model, x = Mixing(MIXES[name]).eval(), torch.randn(2, 3, *GRID)
    sparse = sparsify(model, policy="exact", backend="eager", dense_above=1.0)
    _, baseline = sparse.record(x)
    if name in ("mean", "reversed", "other order", "roll", "running sum"):
        assert not sparse.report().fallbacks, "as one plain axis, items can be updated in part"
    masks = torch.zeros(2, *GRID, dtype=torch.bool)
    masks[0, 3:5, 4:6] = True
    new = edited(x, masks)
    got, baseline = sparse.update(baseline, new, mask=masks, commit=True)
    torch.testing.assert_close(got, model(new), rtol=1e-4, atol=1e-5)
    last = edited(new, masks.flip(0))
    got = sparse.update(baseline, last, mask=masks.flip(0))
    torch.testing.assert_close(got, model(last), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_item_costs_what_its_mask_touches() -> None:
    model, inputs = case()
    sparse = sparsify(model, backend="eager", dilate=0, dense_above=1.0)
    _, baseline = sparse.record(**inputs)
    masks = torch.zeros(3, *GRID, dtype=torch.bool)
    masks[0, 2:4, 3:5] = True
    with patch.object(Program, "record", side_effect=AssertionError("a second dense run")):
        sparse.update(baseline, mask=masks, **{**inputs, "x": edited(inputs["x"], masks)})
    report = sparse.report()
    assert not report.fallbacks
    enter = next(node for node in report if node.name == "conv2d")
    assert enter.macs_now == enter.macs * 4 // (3 * 10 * 12)


@torch.no_grad()
def test_restricted_baselines_serve_the_masks_of_all_items() -> None:
    model, inputs = case()
    masks = torch.zeros(3, *GRID, dtype=torch.bool)
    masks[0, 2:4, 3:6], masks[2, 7:, :2] = True, True
    sparse = sparsify(model, backend="eager", dilate=0)
    _, baseline = sparse.record(**inputs)
    new = {**inputs, "x": edited(inputs["x"], masks)}
    small = sparse.restrict(baseline, masks)
    assert small.nbytes < baseline.nbytes
    want = sparse.update(baseline, mask=masks, **new)
    torch.testing.assert_close(sparse.update(small, mask=masks, **new), want, rtol=0, atol=0)
    with pytest.raises(MaskError, match="restricted to another mask"):
        sparse.update(small, mask=masks.flip(0), **new)


@torch.no_grad()
def test_the_halves_of_a_guided_batch_share_their_masks() -> None:
    model, inputs = case(4)
    masks = torch.zeros(2, *GRID, dtype=torch.bool)
    masks[0, 2:4, 3:6], masks[1, 7:, :2] = True, True
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(**inputs)
    new = {**inputs, "x": edited(inputs["x"], masks.repeat(2, 1, 1))}
    got = sparse.update(baseline, mask=masks, **new)
    want = sparse.update(baseline, mask=masks.repeat(2, 1, 1), **new)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


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


# -- drawn networks -----------------------------------------------------------------------------

ITEM_MASKS = st.lists(MASKS, min_size=3, max_size=3)


def of_items(recipe: Recipe, masks: list[MaskRecipe]) -> tuple[Recipe, Tensor]:
    """The network for a batch of three, and bool [3, H, W], some of it True."""
    assume(any(mask.kind != "empty" for mask in masks))
    return replace(recipe, batch=3), torch.stack([mask.build(recipe.grid) for mask in masks])


def edit(recipe: Recipe, masks: Tensor, seed: int = 1) -> Arguments:
    image, condition, context = recipe.inputs()
    new = recipe.inputs(seed)[0]
    return torch.where(masks[:, None], new, image), condition, context


def item(tree: Any, index: int) -> Any:
    return tree_map_only(Tensor, lambda x: x[index : index + 1], tree)


@FEWER
@given(recipes() | recipes(networks.DIFFUSION), ITEM_MASKS, FIXED, st.booleans())
@torch.no_grad()
def test_a_batch_equals_its_items(
    recipe: Recipe, drawn: list[MaskRecipe], fixed: Fixed, cuda: bool
) -> None:
    recipe, masks = of_items(recipe, drawn)
    later = masks.flip(0)
    model, before, after = recipe.build(), recipe.inputs(), edit(recipe, masks)
    last = torch.where(later[:, None], recipe.inputs(2)[0], after[0]), *after[1:]
    options = {"backend": "eager", "dense_above": 1.0, **vars(fixed)}
    sparse, alone = sparsify(model, **options), sparsify(model, **options)
    with as_on_cuda() if cuda else nullcontext():
        _, baseline = sparse.record(*before)
        assume(sparse._engine.program_of(baseline).runtime.sidecar.items == 3)
        allowed = tolerance(recipe, before, after, last)
        got, committed = sparse.update(baseline, *after, mask=masks, commit=True)
        again = sparse.update(committed, *last, mask=later)
        for index in range(3):
            _, own = alone.record(*item(before, index))
            want, own = alone.update(own, *item(after, index), mask=masks[index], commit=True)
            assert_close(item(got, index), want, allowed)
            want = alone.update(own, *item(last, index), mask=later[index])
            assert_close(item(again, index), want, 2 * allowed)


@FEWER
@given(recipes() | recipes(networks.LOCAL), ITEM_MASKS)
@torch.no_grad()
def test_exact_updates_of_a_batch_equal_dense(recipe: Recipe, drawn: list[MaskRecipe]) -> None:
    recipe, masks = of_items(recipe, drawn)
    model, before, after = recipe.build(), recipe.inputs(), edit(recipe, masks)
    sparse = sparsify(model, policy="exact", backend="eager")
    _, baseline = sparse.record(*before)
    got = sparse.update(baseline, *after, mask=masks)
    assert_close(got, model(*after), tolerance(recipe, before, after))
