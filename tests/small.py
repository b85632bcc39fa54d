"""A little UNet with attention and conditioning, for tests that need just some network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Residual block with group norms and a timestep."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, c_in), nn.GroupNorm(4, c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.time = nn.Linear(8, c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(emb)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SmallUNet(nn.Module):
    """[N, 3, H, W], timestep, context [N, T, 16] -> [N, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 3, padding=1)
        self.high = Block(16, 16)
        self.down = nn.Conv2d(16, 32, 3, stride=2)
        self.low = Block(32, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.query, self.context = nn.Linear(32, 32), nn.Linear(16, 64)
        self.up = Block(48, 16)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        angle = timestep.reshape(-1, 1) * torch.arange(1, 9, device=sample.device) / 8
        emb = angle.cos().to(sample.dtype).expand(sample.shape[0], -1)
        high = self.high(self.enter(sample), emb)
        low = self.low(self.down(F.pad(high, (0, 1, 0, 1))), emb)
        low = low + self._attend(low, context)
        up = F.interpolate(low, scale_factor=2.0)
        return self.leave(self.up(torch.cat([up, high], 1), emb))

    def _attend(self, x: Tensor, context: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        heads = [t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1)]
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(n, h * w, c)
        keys, values = self.context(context).unflatten(-1, (4, 16)).transpose(1, 2).chunk(2, -1)
        query = self.query(y).unflatten(-1, (4, 8)).transpose(1, 2)
        y = y + F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        return y.transpose(1, 2).reshape(n, c, h, w)


def small_unet(seed: int = 0) -> SmallUNet:
    torch.manual_seed(seed)
    return SmallUNet().eval()


def small_inputs(batch: int = 1, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    own = torch.Generator().manual_seed(1)  # several threads draw them at once
    sample = torch.randn(batch, 3, size, size, generator=own)
    return sample, torch.tensor(7.0), torch.randn(batch, 5, 16, generator=own)


def corner(size: int = 16) -> Tensor:
    """A mask of 3 x 4 sites near a corner."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[2:5, 1:5] = True
    return mask
