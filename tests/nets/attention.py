"""Attention as people write it: windows, axes, latents, rotary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tests.agreement import Grid
from tests.nets.base import C, conv


class Attention(nn.Module):
    """Two heads on tokens; ``keys`` heads of keys, by ``mode``; perhaps a gate."""

    def __init__(self, mode: str = "plain", keys: int = 2, gated: bool = False) -> None:
        super().__init__()
        self.mode, self.keys = mode, keys
        self.norm, self.query = nn.LayerNorm(C), nn.Linear(C, C)
        self.pair, self.out = nn.Linear(C, 2 * keys * 4), nn.Linear(C, C)
        self.gate = nn.Linear(C, C) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(rearrange(x, "b c h w -> b (h w) c"))
        query = rearrange(self.query(tokens), "b l (n d) -> b n l d", d=4)
        pair = rearrange(self.pair(tokens), "b l (two n d) -> two b n l d", two=2, d=4)
        y = rearrange(self._attend(query, pair[0], pair[1]), "b n l d -> b l (n d)")
        if self.gate is not None:
            y = y * self.gate(tokens).sigmoid()
        return x + rearrange(self.out(y), "b (h w) c -> b c h w", h=x.shape[2])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.mode == "enable_gqa":
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        heads = 2 // self.keys
        if self.mode == "repeats":
            key, value = (t.repeat_interleave(heads, 1) for t in (key, value))
        elif self.mode == "broadcast":
            return ((query @ key.mT) / 2).softmax(-1) @ value
        elif self.mode == "einsum":
            scores = torch.einsum("bnld,bnmd->bnlm", query, key)
            return torch.einsum("bnlm,bnmd->bnld", (scores / 2).softmax(-1), value)
        elif self.mode == "cosine":
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        elif self.mode == "causal":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return F.scaled_dot_product_attention(query, key, value)


class Windows(nn.Module):
    """Window attention with a bias by relative position; ``shift`` rolls both axes and masks."""

    def __init__(self, grid: Grid, window: int = 4, shift: int = 0, einops: bool = False) -> None:
        super().__init__()
        self.window, self.shift, self.einops = window, shift, einops
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, 2) / 4)
        at = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])
        self.register_buffer("allowed", self._allowed(grid) if shift else None)

    def _allowed(self, grid: Grid) -> Tensor:
        """-100 between sites that the roll made neighbours."""
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        region = torch.zeros(1, *grid, 1)
        for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
            region[:, rows, columns] = number
        region = self._cut(region).squeeze(-1)
        return (region[:, None] - region[:, :, None]).ne(0) * -100.0

    def _cut(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N * windows, window^2, C]."""
        n, h, w, c = x.shape
        x = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, c)

    def _join(self, windows: Tensor, shape: torch.Size) -> Tensor:
        n, h, w, c = shape
        x = windows.view(n, h // self.window, w // self.window, self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N, H, W, C]."""
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        pattern = "b (y p) (x q) c -> (b y x) (p q) c"
        size = {"p": self.window, "q": self.window}
        windows = rearrange(x, pattern, **size) if self.einops else self._cut(x)
        qkv = self.qkv(windows).reshape(*windows.shape[:2], 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) / 2
        scores = scores + self.bias[self.index].permute(2, 0, 1)
        if self.allowed is not None:
            count = self.allowed.shape[0]
            scores = scores.unflatten(0, (-1, count)) + self.allowed[:, None]
            scores = scores.flatten(0, 1)
        y = self.out((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(windows.shape))
        if self.einops:
            back = "(b y x) (p q) c -> b (y p) (x q) c"
            y = rearrange(y, back, b=x.shape[0], y=x.shape[1] // self.window, **size)
        else:
            y = self._join(y, x.shape)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class Swin(nn.Module):
    """Two whole blocks on tokens [N, H*W, C], the second shifted."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.enter = grid, conv()
        self.windows = nn.ModuleList(Windows(grid, 4, shift) for shift in (0, 2))
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(C, 16), nn.GELU(), nn.Linear(16, C)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        for i, (windows, mlp) in enumerate(zip(self.windows, self.mlps, strict=True)):
            picture = self.norms[2 * i](tokens).view(-1, *self.grid, C)
            tokens = tokens + windows(picture).view(tokens.shape)
            tokens = tokens + mlp(self.norms[2 * i + 1](tokens))
        return tokens.transpose(1, 2).reshape(x.shape)


class Axial(nn.Module):
    """Attention along the rows, then along the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(C, 3 * C), nn.Linear(C, 3 * C)

    def forward(self, x: Tensor) -> Tensor:
        rows = rearrange(x, "b c h w -> (b h) w c")
        x = x + rearrange(self._attend(self.rows(rows)), "(b h) w c -> b c h w", h=x.shape[2])
        columns = rearrange(x, "b c h w -> (b w) h c")
        y = self._attend(self.columns(columns))
        return x + rearrange(y, "(b w) h c -> b c h w", w=x.shape[3])

    def _attend(self, qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*qkv.chunk(3, -1))


class Latents(nn.Module):
    """Perceiver: a few learnt queries read the picture, and the picture reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, C))
        self.read, self.write = nn.Linear(C, 2 * C), nn.Linear(C, 2 * C)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        queries = self.queries.expand(x.shape[0], -1, -1)
        latents = F.scaled_dot_product_attention(queries, *self.read(tokens).chunk(2, -1))
        y = F.scaled_dot_product_attention(tokens, *self.write(latents).chunk(2, -1))
        return x + y.mT.reshape(x.shape)


class FewerKeys(nn.Module):
    """Keys of a coarser grid (PVT, SegFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.pair = nn.Linear(C, C), nn.Linear(C, 2 * C)
        self.coarse, self.norm = nn.Conv2d(C, C, 2, 2), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        pair = self.pair(self.norm(self.coarse(x).flatten(2).mT)).chunk(2, -1)
        y = F.scaled_dot_product_attention(self.query(x.flatten(2).mT), *pair)
        return x + y.mT.reshape(x.shape)


class Rotary(nn.Module):
    """Rotary positions of rows and columns as complex numbers."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        angles = torch.cartesian_prod(*(torch.arange(size) for size in grid)).float() / 3
        self.register_buffer("cos", angles.repeat_interleave(4, 1).cos())
        self.register_buffer("sin", angles.repeat_interleave(4, 1).sin())
        self.qkv = nn.Linear(C, 3 * C)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x.flatten(2).mT).chunk(3, -1)
        y = F.scaled_dot_product_attention(self._turn(query), self._turn(key), value)
        return x + y.mT.reshape(x.shape)

    def _turn(self, x: Tensor) -> Tensor:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * self.cos + turned * self.sin
