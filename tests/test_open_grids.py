"""Grids with a side left open: rows of tokens, as many as there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsify import ConfigError, GridError, sparsify


class Tokens(nn.Module):
    """A block of a transformer, or, of pictures, a convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            y: Tensor = self.conv(x)
            return y
        heads = (one(x).unflatten(-1, (2, 4)).transpose(1, 2) for one in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return x + torch.as_tensor(self.out(mixed.transpose(1, 2).flatten(2)))


@pytest.fixture(name="model")
def _model() -> Tokens:
    torch.manual_seed(0)
    return Tokens().double().eval()


@pytest.mark.parametrize("grid", [(1, -1), (-1, 1), (4, -1), (-1, 6)])
@torch.no_grad()
def test_an_open_side_is_as_long_as_the_tokens_ask_for(
    model: Tokens, grid: tuple[int, int]
) -> None:
    sparse = sparsify(model, backend="eager", grids={"x": grid}, policy="exact")
    for count in (24, 36):
        x = torch.randn(2, count, 8, dtype=torch.float64)
        whole = tuple(count // -(grid[0] * grid[1]) if side == -1 else side for side in grid)
        mask = torch.zeros(whole, dtype=torch.bool)
        mask.view(-1)[3:9] = True
        edited = torch.where(mask.view(-1, 1), x + 1, x)
        _, baseline = sparse.record(x)
        assert baseline.grid == whole
        got = sparse.update(baseline, edited, mask=mask)
        torch.testing.assert_close(got, model(edited))


@torch.no_grad()
def test_of_pictures_an_open_grid_says_nothing(model: Tokens) -> None:
    sparse = sparsify(model, backend="eager", grids={"x": (1, -1)})
    _, baseline = sparse.record(torch.randn(1, 8, 6, 5, dtype=torch.float64))
    assert baseline.grid == (6, 5)


def test_no_row_is_widened_unasked() -> None:
    config = sparsify(Tokens().eval(), grids={"x": (1, -1)}).sparsify_config
    assert config.dilation((1, 64)) == 0
    assert config.dilation((2, 64)) == 1


def test_grids_that_cannot_be(model: Tokens) -> None:
    with pytest.raises(ConfigError, match=r"-1, -1"):
        sparsify(model, grids={"x": (-1, -1)})
    with pytest.raises(ConfigError, match=r"1, 0"):
        sparsify(model, grids={"x": (1, 0)})
    sparse = sparsify(model, backend="eager", grids={"x": (5, -1)})
    with pytest.raises(GridError, match=r"24 tokens but the grid \(5, 4\) has 20"):
        sparse.record(torch.randn(1, 24, 8, dtype=torch.float64))
