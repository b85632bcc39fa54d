"""Masks as people have them: each kind gives what its bool [H, W] gives, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sparsify import Baseline, MaskError, SparseModule, difference_mask, sparsify
from sparsify.masks import as_mask, fitted
from tests.networks import MASKS, MaskRecipe
from tests.small import corner, small_inputs, small_unet

GRID = (16, 16)

KINDS: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda m: m,
    "uint8 0/255": lambda m: m.to(torch.uint8) * 255,
    "uint16": lambda m: m.to(torch.uint16),
    "int64": lambda m: m.long(),
    "float 0..1": lambda m: m.float(),
    "feathered": lambda m: m * torch.rand(m.shape).clamp(min=1e-3),
    "float16": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "float64": lambda m: m.double() * 1e-300,
    "with a gradient": lambda m: m.float().requires_grad_(),
    "not contiguous": lambda m: m.t().contiguous().t(),
    "[1, H, W]": lambda m: m[None],
    "[1, 1, H, W]": lambda m: m[None, None].float(),
    "NumPy": lambda m: m.numpy(),
    "NumPy uint8": lambda m: m.numpy().astype(np.uint8) * 255,
    "NumPy, other byte order": lambda m: m.numpy().astype(">f4"),
    "NumPy, flipped twice": lambda m: m.flip(0).numpy()[::-1],
    "PIL 1": lambda m: Image.fromarray(m.numpy()),
    "PIL L": lambda m: Image.fromarray(m.numpy().astype(np.uint8) * 255),
    "PIL F": lambda m: Image.fromarray(m.numpy().astype(np.float32)),
    "picture-sized": lambda m: m.repeat_interleave(8, 0).repeat_interleave(8, 1).float(),
    "one pixel of a site": lambda m: (
        torch.stack([m, *(torch.zeros_like(m),) * 3], -1)
        .unflatten(-1, (2, 2))
        .transpose(1, 2)
        .reshape(32, 32)
    ),
}


@cache
def recorded(batch: int) -> tuple[SparseModule, tuple[Tensor, ...], Baseline]:
    sparse, inputs = sparsify(small_unet(), backend="eager", dense_share=0.0), small_inputs(batch)
    return sparse, inputs, sparse.record(*inputs)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_bool_mask(kind: str) -> None:
    sparse, (x, *rest), baseline = recorded(1)
    given = KINDS[kind](corner())
    edited = torch.where(corner(), x + 1, x)
    got = sparse.update(baseline, edited, *rest, mask=given)
    assert torch.equal(got, sparse.update(baseline, edited, *rest, mask=corner()))
    assert torch.equal(sparse.update(baseline, edited, *rest, mask=sparse.plan(given)), got)


def test_halves_of_a_guided_batch_share_masks() -> None:
    sparse, (x, *rest), baseline = recorded(4)
    masks = torch.stack([corner(), corner().flip(0)])
    whole = masks.repeat(2, 1, 1)
    edited = torch.where(whole[:, None], x + 1, x)
    with pytest.raises(MaskError, match=r"3 items, the inputs 4.*repeat\(3"):
        sparse.plan(masks[[0, 1, 1]])
    plan = sparse.plan(masks)
    want = sparse.update(baseline, edited, *rest, mask=whole)
    for mask in (masks, plan, masks[:, None].half()):
        assert torch.equal(sparse.update(baseline, edited, *rest, mask=mask), want)


@given(recipe=MASKS, times=st.integers(1, 3), grid=st.sampled_from([(5, 7), (4, 4)]))
def test_larger_masks_lose_no_pixel(recipe: MaskRecipe, times: int, grid: tuple[int, int]) -> None:
    mask = recipe.build((times * grid[0], times * grid[1]))
    want = {(int(y) // times, int(x) // times) for y, x in mask.nonzero()}
    assert {(int(y), int(x)) for y, x in fitted(as_mask(mask), grid, 1).nonzero()} == want


@pytest.mark.parametrize("use", ["plan", "editing", "restrict", "session.restrict"])
def test_plans_own_their_masks(use: str) -> None:
    """The caller paints on in his own mask; what was planned is what he gave."""
    sparse, (x, *rest), _ = recorded(1)
    edited, mask = torch.where(corner(), x + 1, x), corner()
    with sparse.recording() as session:
        sparse(x, *rest)
    (baseline,) = session.calls
    want = sparse.update(baseline, edited, *rest, mask=corner())
    if use == "plan":
        plan = sparse.plan(mask)
        mask.logical_not_()
        plan.tables.clear()  # as for another signature, which plans the mask again
        got = sparse.update(baseline, edited, *rest, mask=plan)
    elif use == "editing":
        with session.editing(mask):
            mask.logical_not_()
            got = sparse(edited, *rest)
    else:
        if use == "restrict":
            baseline = sparse.restrict(baseline, mask)
        else:
            session.restrict(mask)
            (baseline,) = session.calls
        mask.logical_not_()
        with pytest.raises(MaskError, match="restricted to another mask"):
            sparse.update(baseline, edited, *rest, mask=mask)
        got = sparse.update(baseline, edited, *rest, mask=corner())
    assert torch.equal(got, want)


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.uint16),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numpy", [False, True])
def test_difference_masks_of_every_dtype(dtype: torch.dtype, numpy: bool) -> None:
    if numpy and dtype == torch.bfloat16:
        pytest.skip("NumPy has none")
    before = torch.zeros(1, 3, 6, 9).to(dtype)
    after = before.clone()
    after[0, 1, 2, 3] = 1
    if dtype in (torch.uint8, torch.int16):
        after[0, 1, 2, 3] = 254
    if dtype == torch.int8:
        before[0, 1, 2, 3], after[0, 1, 2, 3] = -128, 127
    want = torch.zeros(6, 9, dtype=torch.bool)
    want[2, 3] = True
    for one, other in ((before, after), (after, before)):
        pair = (one.numpy(), other.numpy()) if numpy else (one, other)
        assert torch.equal(difference_mask(*pair), want)


def test_thresholds_are_in_the_values_own_units() -> None:
    before = torch.tensor([[0, 100, 250, 7]], dtype=torch.uint8)
    after = torch.tensor([[3, 96, 1, 7]], dtype=torch.uint8)
    assert difference_mask(before, after).tolist() == [[True, True, True, False]]
    assert difference_mask(before, after, threshold=3).tolist() == [[False, True, True, False]]
    floats = before / 255, after / 255
    assert difference_mask(*floats, threshold=3.5 / 255).tolist() == [[False, True, True, False]]


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4),
    others=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4),
)
def test_no_integer_difference_wraps(values: list[int], others: list[int]) -> None:
    got = difference_mask(torch.tensor([values]), torch.tensor([others]))
    assert got[0].tolist() == [a != b for a, b in zip(values, others, strict=True)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "F"])
def test_difference_masks_of_images(mode: str) -> None:
    before = Image.new("RGBA", (9, 6), (10, 20, 30, 255))
    after = before.copy()
    after.putpixel((3, 2), (250, 240, 230, 255))
    before, after = (image.convert(mode, dither=Image.Dither.NONE) for image in (before, after))
    got = difference_mask(before, after)
    assert got.nonzero().tolist() == [[2, 3]]


def test_pictures_that_cannot_be_compared() -> None:
    with pytest.raises(MaskError, match="one shape"):
        difference_mask(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
    with pytest.raises(MaskError, match=r"channels last.*before.movedim\(-1, -3\)"):
        difference_mask(torch.zeros(2, 8, 9, 3), torch.zeros(2, 8, 9, 3))
    picture = np.zeros((8, 9, 3), np.uint8)
    with pytest.raises(MaskError, match=r"channels last.*np.moveaxis\(before, -1, -3\)"):
        difference_mask(picture, picture)
    with pytest.raises(MaskError, match=r"before.float\(\) / 255"):
        difference_mask(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4))
    with pytest.raises(MaskError, match="before is a str"):
        difference_mask("before.png", "after.png")  # type: ignore[arg-type]


def test_a_changed_palette_is_a_changed_picture() -> None:
    before = Image.new("P", (9, 6), 1)
    after = before.copy()
    before.putpalette([0, 0, 0, 10, 10, 10])
    after.putpalette([0, 0, 0, 90, 10, 10])
    assert difference_mask(before, after).all()
