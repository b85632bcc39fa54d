"""Textures without a seam: where convolutions wrap around the border, so do masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify import sparsify
from tests.networks import MASKS, MaskRecipe

GRID = (8, 12)


class Texture(nn.Module):
    """Convolutions around the border of rows, of columns, or of both, on two grids."""

    def __init__(self, wraps: tuple[bool, bool]) -> None:
        super().__init__()
        self.modes = tuple("circular" if wrap else "constant" for wrap in wraps)
        self.enter, self.leave = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 3, 3)
        self.deep, self.norm = nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6)

    def around(self, x: Tensor) -> Tensor:
        return F.pad(F.pad(x, (1, 1, 0, 0), self.modes[1]), (0, 0, 1, 1), self.modes[0])

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.enter(self.around(x)))
        low = self.norm(self.deep(self.around(F.avg_pool2d(y, 2))))
        return self.leave(self.around(y + F.interpolate(low, scale_factor=2.0)))


@pytest.mark.parametrize("policy", ["exact", "fixed"])
@settings(max_examples=5)
@given(st.tuples(st.booleans(), st.booleans()), MASKS, st.sampled_from([0, 1, 3, 9]))
@torch.no_grad()
def test_turned_pictures_give_turned_updates(
    policy: str, wraps: tuple[bool, bool], recipe: MaskRecipe, dilate: int
) -> None:
    """By whole sites of the coarse grid, along the axes without a border."""
    torch.manual_seed(0)
    x, network, mask = torch.randn(1, 3, *GRID), Texture(wraps).eval(), recipe.build(GRID)
    steps = [size // 2 if wrap else 0 for size, wrap in zip(GRID, wraps, strict=True)]
    edited = torch.where(mask, x + 1, x)
    sparse = sparsify(network, policy=policy, backend="eager", dilate=dilate, dense_share=0)

    def turned(value: Tensor) -> Tensor:
        return value.roll(steps, (-2, -1))

    _, first = sparse.record(x)
    _, second = sparse.record(turned(x))
    got = sparse.update(second, turned(edited), mask=turned(mask))
    torch.testing.assert_close(got, turned(sparse.update(first, edited, mask=mask)))
    if policy == "exact":
        torch.testing.assert_close(got, network(turned(edited)))


@torch.no_grad()
def test_an_edit_at_the_border_reaches_the_other_end() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(1, 3, *GRID), torch.zeros(GRID, dtype=torch.bool)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), nn.SiLU())
    mask[0, 0] = True
    sparse = sparsify(network.eval(), backend="eager", dilate=1, dense_share=0)
    _, baseline = sparse.record(x)
    edited = torch.where(mask, x + 1, x)
    torch.testing.assert_close(sparse.update(baseline, edited, mask=mask), network(edited))
