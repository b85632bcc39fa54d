"""Operators that move sites: how much of the networks made of them is packed, and where their
edits lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import sparsify
from tests.agreement import Example, assert_right
from tests.nets.swin_restorers import SwinRestorer


@pytest.mark.parametrize("cosine", [False, True], ids=["SwinIR", "Swin2SR"])
@pytest.mark.parametrize("size", [(16, 12), (15, 10)])
def test_shifted_windows_are_packed(cosine: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = SwinRestorer((16, 12), cosine)
    report = assert_right(Example(model, {"x": torch.randn(1, 3, *size)}))
    assert report.share("packed") >= 0.95


class Local(nn.Module):
    """Two convolutions of one site, and what moves sites between them."""

    def __init__(self, moves: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.moves = moves
        self.first, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.moves(self.first(x)))
        return y


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.roll((3, -5), (2, 3)),
    "flip": lambda x: x.flip(2, 3),
    "crop": lambda x: x[:, :, 3:, 2:-4],
    "crop to a half": lambda x: x[:, :, 8:],
    "halves": lambda x: torch.cat([x[..., 5:], x[..., :5]], 3),
    "tiles apart": lambda x: torch.cat([x[:, :, :8].tanh(), x[:, :, 4:].relu()], 2),
    "rolled twice": lambda x: x.roll(4, 2).tanh().roll(-4, 2),
    "enlarged crop": lambda x: F.interpolate(x[:, :, 4:12, 6:], scale_factor=2).roll(1, 2),
}


@pytest.mark.parametrize("name", MOVES)
@torch.no_grad()
def test_an_edit_lies_where_the_picture_says(name: str) -> None:
    """What moves sites without mixing them is exact under "fixed" too: masks move with it."""
    torch.manual_seed(0)
    model = Local(MOVES[name]).eval()
    sparse = sparsify(model, backend="eager", dilate=0, dense_share=0.0)
    x = torch.randn(1, 2, 16, 12)
    _, baseline = sparse.record(x)
    for top, left in ((0, 0), (4, 6), (9, 3), (13, 9)):
        mask = torch.zeros(16, 12, dtype=torch.bool)
        mask[top : top + 3, left : left + 3] = True
        edited = torch.where(mask, x + 1, x)
        got = sparse.update(baseline, edited, mask=mask)
        torch.testing.assert_close(got, model(edited))
    assert sparse.report().share("packed") == 1.0


def test_a_way_and_back_adds_no_masks() -> None:
    """So the residual of a shifted window is read where it stands."""
    model = Local(lambda x: x + (x.roll((2, 2), (2, 3)) * 2).roll((-2, -2), (2, 3))).eval()
    sparse = sparsify(model, backend="eager", dilate=0, dense_share=0.0)
    graph = sparse.graphs(torch.randn(1, 2, 16, 12))["plan"].graph
    targets = [getattr(node.target, "__name__", "") for node in graph.nodes]
    assert targets.count("moved") == 1 and "union" not in targets


class Tiled(nn.Module):
    """Overlapping tiles, decoded alone and blended row by row (a tiled autoencoder)."""

    def __init__(self, overlap: int) -> None:
        super().__init__()
        self.overlap = overlap
        self.conv, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, step = self.overlap, 8 - self.overlap
        rows = [
            [self._decoded(x[:, :, i : i + 8, j : j + 8]) for j in range(0, 2 * step, step)]
            for i in range(0, 2 * step, step)
        ]
        done = []
        for i, row in enumerate(rows):
            parts = []
            for j, tile in enumerate(row):
                if i > 0:
                    tile = self._blended(rows[i - 1][j], tile, 2 * n, 2)
                if j > 0:
                    tile = self._blended(row[j - 1], tile, 2 * n, 3)
                parts.append(tile[:, :, : 2 * step, : 2 * step])
            done.append(torch.cat(parts, 3))
        return torch.cat(done, 2)

    def _decoded(self, tile: Tensor) -> Tensor:
        up = F.interpolate(self.conv(tile).relu(), scale_factor=2)
        y: Tensor = self.last(up)
        return y

    def _blended(self, a: Tensor, b: Tensor, extent: int, dim: int) -> Tensor:
        for y in range(extent):
            share = y / extent
            new = a.select(dim, y - extent) * (1 - share) + b.select(dim, y) * share
            b.select(dim, y).copy_(new)
        return b


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_tiles_are_packed_and_blended_at_once(overlap: int) -> None:
    torch.manual_seed(0)
    size = 2 * (8 - overlap)
    report = assert_right(Example(Tiled(overlap), {"x": torch.randn(1, 2, size, size)}))
    assert report.share("packed") == 1.0
    assert sum(node.operator == "aten.mul" for node in report.nodes) == 8


class Chunked(nn.Module):
    """A feed-forward layer over chunks of the tokens."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm, self.wide, self.back = nn.LayerNorm(4), nn.Linear(4, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        parts = [self._layer(part) for part in self.norm(tokens).split(self.size, 1)]
        tokens = tokens + torch.cat(parts, 1)
        return tokens.transpose(1, 2).view(x.shape)

    def _layer(self, part: Tensor) -> Tensor:
        value, gate = self.wide(part).chunk(2, -1)
        y: Tensor = self.back(value * F.gelu(gate))
        return y


@pytest.mark.parametrize("size", [7, 12, 24])
def test_chunks_are_computed_at_once(size: int) -> None:
    torch.manual_seed(0)
    report = assert_right(Example(Chunked(size), {"x": torch.randn(2, 4, 8, 6)}))
    assert report.share("packed") == 1.0


def test_a_norm_with_running_statistics_is_local() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm)
    report = assert_right(Example(model, {"input": torch.randn(1, 2, 8, 6)}, edits=("input",)))
    assert report.share("packed") == 1.0
    assert all(node.state != "fallback" for node in report.nodes)


class Conditioned(nn.Module):
    """A pad, and a transposed convolution with gaps between its taps, in front of a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(3, 4)
        self.last = nn.ConvTranspose2d(4, 4, 2, stride=3, output_padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift = self.shift(condition)[:, :, None, None]
        padded = F.pad(self.first(x), (0, 0, 0, 1)) * shift
        return self.last(padded) * shift


@pytest.mark.parametrize("policy", ["fixed", "exact"])
@torch.no_grad()
def test_sites_that_read_nothing_follow_other_conditions(policy: Any) -> None:
    model, (x, condition) = Conditioned().eval(), (torch.randn(1, 2, 8, 8), torch.randn(1, 3))
    options = {"backend": "eager", "dense_share": 0.0, "dense_above": 1.0, "any_step": True}
    sparse = sparsify(model, policy=policy, **options)
    _, baseline = sparse.record(x, condition)
    got = sparse.update(baseline, x + 1, 2 * condition, mask=torch.ones(8, 8, dtype=torch.bool))
    torch.testing.assert_close(got, model(x + 1, 2 * condition), rtol=1e-4, atol=1e-5)


class Framed(nn.Module):
    """What image restorers do around a network: pad to a multiple, and crop at the end; or crop
    first, and pad back."""

    def __init__(self, crop_first: bool, mode: str) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.crop_first, self.mode = crop_first, mode

    def forward(self, x: Tensor) -> Tensor:
        if self.crop_first:
            inner = self.first(x)[:, :, 9:, 9:]
            return self.last(F.pad(inner, (9, 0, 9, 0), self.mode))
        height, width = x.shape[2:]
        y = F.pad(x, (0, 11, 0, 11), self.mode)
        return self.last(self.first(y).relu())[:, :, :height, :width]


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("crop_first", [False, True])
@torch.no_grad()
def test_an_edit_is_where_it_was_made(crop_first: bool, mode: str) -> None:
    """Masks of padded and cropped maps stand where their rows do, under policy "fixed" too."""
    torch.manual_seed(0)
    size = 37
    model, x = Framed(crop_first, mode).eval(), torch.randn(1, 2, size, size)
    sparse = sparsify(model, backend="eager", dense_above=1.0)
    _, baseline = sparse.record(x)
    for at in range(12, size, 4):
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[at, at] = True
        edited = torch.where(mask, x + 1, x)
        got, want = sparse.update(baseline, edited, mask=mask), model(edited)
        torch.testing.assert_close(got[..., at, at], want[..., at, at], rtol=1e-4, atol=1e-5)
