"""SwinIR and Swin2SR, from their papers: residual groups of shifted-window blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]


def _cut(x: Tensor, size: int) -> Tensor:
    """[N, H, W, C] -> [N * windows, size^2, C]."""
    n, h, w, c = x.shape
    x = x.view(n, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, c)


def _joined(windows: Tensor, size: int, n: int, h: int, w: int) -> Tensor:
    x = windows.view(n, h // size, w // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, -1)


def _allowed(grid: Grid, size: int, shift: int) -> Tensor:
    """-100 between sites that the roll made neighbours, [windows, size^2, size^2]."""
    cuts = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    region = torch.zeros(1, *grid, 1)
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        region[:, rows, columns] = number
    flat = _cut(region, size).squeeze(-1)
    return (flat[:, None] - flat[:, :, None]).ne(0) * -100.0


class Attention(nn.Module):
    """In one window; a bias by relative position, from a table or (``cosine``) from a small
    network of log-spaced offsets."""

    def __init__(self, width: int, heads: int, size: int, cosine: bool) -> None:
        super().__init__()
        self.heads, self.cosine = heads, cosine
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        at = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + size - 1
        self.register_buffer("index", offset[0] * (2 * size - 1) + offset[1])
        if not cosine:
            self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) / 4)
            return
        steps = torch.arange(1.0 - size, size) / (size - 1) * 8
        steps = steps.sign() * (steps.abs() + 1).log2() / 3
        self.register_buffer("offsets", torch.cartesian_prod(steps, steps))
        self.of_offset = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, heads, bias=False)
        )
        self.scale = nn.Parameter(torch.full((heads, 1, 1), 10.0).log())

    def forward(self, windows: Tensor, allowed: Tensor | None) -> Tensor:
        count, length, width = windows.shape
        q, k, v = self.qkv(windows).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.cosine:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.scale.clamp(max=4.6052).exp()
            bias = 16 * self.of_offset(self.offsets)[self.index].permute(2, 0, 1).sigmoid()
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            bias = self.table[self.index].permute(2, 0, 1)
        scores = scores + bias
        if allowed is not None:
            several = scores.view(-1, allowed.shape[0], self.heads, length, length)
            scores = (several + allowed[:, None]).view(scores.shape)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, width)
        return self.project(mixed)


class Block(nn.Module):
    """Norms before the branches; Swin2SR has them behind (``cosine``)."""

    def __init__(self, width: int, heads: int, grid: Grid, shift: int, cosine: bool) -> None:
        super().__init__()
        self.size, self.grid, self.shift, self.cosine = 4, grid, shift, cosine
        self.attention = Attention(width, heads, self.size, cosine)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.register_buffer("allowed", _allowed(grid, self.size, shift) if shift else None)

    def _mixed(self, tokens: Tensor) -> Tensor:
        (height, width), shift = self.grid, self.shift
        x = tokens.view(-1, height, width, tokens.shape[-1])
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        windows = self.attention(_cut(x, self.size), self.allowed)
        x = _joined(windows, self.size, x.shape[0], height, width)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x.view(tokens.shape)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.cosine:
            tokens = tokens + self.norm1(self._mixed(tokens))
            return tokens + self.norm2(self.mlp(tokens))
        tokens = tokens + self._mixed(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SwinRestorer(nn.Module):
    """SwinIR, or Swin2SR (``cosine``), for twice the size: the published one has 6 groups of 6
    blocks, 180 channels, 6 heads and windows of 8."""

    def __init__(self, grid: Grid, cosine: bool = False, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.grid = grid
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.enter, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.groups = nn.ModuleList(
            nn.ModuleList(Block(width, heads, grid, shift, cosine) for shift in (0, 2))
            for _ in range(2)
        )
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in self.groups)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Sides that 4 does not divide are continued by reflection, and cut off again."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, self.grid[1] - width, 0, self.grid[0] - height), "reflect")
        shallow = self.first(x)
        tokens = self.enter(shallow.flatten(2).transpose(1, 2))
        for blocks, conv in zip(self.groups, self.convs, strict=True):
            before = tokens
            for block in blocks:
                tokens = block(tokens)
            image = tokens.transpose(1, 2).view(shallow.shape)
            tokens = before + conv(image).flatten(2).transpose(1, 2)
        deep = self.norm(tokens).transpose(1, 2).view(shallow.shape)
        image = self.last(self.up(shallow + self.body(deep)))
        return image[:, :, : 2 * height, : 2 * width]
