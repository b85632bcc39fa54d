"""Maps under constants and conditions of every shape that broadcasts against them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsify import sparsify

HEIGHT, WIDTH = 12, 16


class Scaled(nn.Module):
    """A map between two convolutions, times a factor of its own and one of the call."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.enter, self.leave = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.register_buffer("factor", torch.randn(shape))

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.leave(self.enter(x) * self.factor + factor)


SHAPES = [(WIDTH,), (1,), (), (HEIGHT, 1), (HEIGHT, WIDTH), (1, WIDTH), (2, 1, 1), (2, HEIGHT, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sites", [(3, 5), (1, WIDTH), (4, 4)])
@torch.no_grad()
def test_factors_of_every_shape(shape: tuple[int, ...], sites: tuple[int, int]) -> None:
    """Also where there are as many active sites as the map is wide."""
    torch.manual_seed(0)
    model, x = Scaled(shape).eval(), torch.randn(1, 2, HEIGHT, WIDTH)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[: sites[0], : sites[1]] = True
    sparse = sparsify(model, backend="eager", policy="exact", dense_above=1.0, any_step=True)
    _, baseline = sparse.record(x, torch.randn(shape))
    edited, everything = torch.where(mask, x + 1, x), torch.ones_like(mask)
    factor = baseline.inputs[1]
    got = sparse.update(baseline, edited, factor, mask=mask)
    torch.testing.assert_close(got, model(edited, factor), rtol=1e-4, atol=1e-5)
    new = torch.randn(shape)
    got = sparse.update(baseline, edited, new, mask=everything)
    torch.testing.assert_close(got, model(edited, new), rtol=1e-4, atol=1e-5)
