"""Attention of generators: of channels and sites, by bmm, channels first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from tests.nets.gan_base import WIDTH


class Cbam(nn.Module):
    """Gates of channels, from means and maxima over the picture, then gates of sites."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Conv2d(WIDTH, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, WIDTH, 1, bias=False)
        )
        self.sites = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * gate.sigmoid()
        both = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]), 1)
        return x + self.leave(x * self.sites(both).sigmoid())


class SelfAttention(nn.Module):
    """Of SAGAN: products by bmm, keys on a coarser grid, after a pixel norm."""

    def __init__(self) -> None:
        super().__init__()
        c = WIDTH
        self.query, self.key, self.value = (
            spectral_norm(nn.Conv2d(c, n, 1)) for n in (2, 2, c // 2)
        )
        self.out, self.gamma = spectral_norm(nn.Conv2d(c // 2, c, 1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
        query = self.query(x).view(n, -1, h * w)
        key = F.max_pool2d(self.key(x), 2).view(n, -1, h * w // 4)
        value = F.max_pool2d(self.value(x), 2).view(n, -1, h * w // 4)
        weights = torch.bmm(query.permute(0, 2, 1), key).softmax(-1)
        y = torch.bmm(value, weights.permute(0, 2, 1)).view(n, c // 2, h, w)
        return x + self.gamma * self.out(y)


class BmmAttention(nn.Module):
    """Of the first latent diffusion models and VQGAN: channels first, values times weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        b, c, h, w = x.shape
        query = self.query(y).reshape(b, c, h * w).permute(0, 2, 1)
        weights = torch.bmm(query, self.key(y).reshape(b, c, h * w)) * c**-0.5
        weights = weights.softmax(dim=2).permute(0, 2, 1)
        y = torch.bmm(self.value(y).reshape(b, c, h * w), weights).reshape(b, c, h, w)
        return x + self.out(y)
