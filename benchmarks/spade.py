"""GauGAN's generator: pictures from maps of labels, with spatially adaptive norms (SPADE)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

Norm = Literal["batch", "instance"]
WIDTHS = ((16, 16), (16, 16), (16, 16), (16, 8), (8, 4), (4, 2), (2, 1))
"""Channels that each block reads and writes, as multiples of the width of the last one."""
GROWS = (False, True, False, True, True, True, True)
"""Is the grid doubled before the block?"""


class Spade(nn.Module):
    """A norm without parameters, modulated by maps made of the resized labels."""

    def __init__(self, channels: int, labels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        kind = nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d
        self.norm = kind(channels, affine=False)
        self.shared = nn.Sequential(nn.Conv2d(labels, hidden, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """``x [N, C, H, W]`` and ``labels [N, L, H', W']`` -> ``[N, C, H, W]``."""
        hidden = self.shared(F.interpolate(labels, size=x.shape[2:], mode="nearest"))
        result: Tensor = self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)
        return result


class SpadeBlock(nn.Module):
    """Two convolutions with spectral norm; a learnt shortcut where the channels change."""

    def __init__(self, c_in: int, c_out: int, labels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        middle = min(c_in, c_out)
        self.conv0 = spectral_norm(nn.Conv2d(c_in, middle, 3, padding=1))
        self.conv1 = spectral_norm(nn.Conv2d(middle, c_out, 3, padding=1))
        self.norm0 = Spade(c_in, labels, hidden, norm)
        self.norm1 = Spade(middle, labels, hidden, norm)
        self.has_shortcut = c_in != c_out
        if self.has_shortcut:
            self.shortcut = spectral_norm(nn.Conv2d(c_in, c_out, 1, bias=False))
            self.norm = Spade(c_in, labels, hidden, norm)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.conv0(F.leaky_relu(self.norm0(x, labels), 0.2))
        y = self.conv1(F.leaky_relu(self.norm1(y, labels), 0.2))
        shortcut: Tensor = self.shortcut(self.norm(x, labels)) if self.has_shortcut else x
        result: Tensor = shortcut + y
        return result


class SpadeGenerator(nn.Module):
    """Labels ``[N, L, H, W]`` -> picture ``[N, 3, H, W]``; 32 divides H and W.

    Args:
        labels: channels of the map: one a class, and the edges between instances.
        width: channels of the finest grid (published: 64).
        hidden: channels of the maps that a norm is modulated by (published: 128).
        norm: of the features; statistics of ``"batch"`` are constants in eval mode.
        blocks: how many of the seven published blocks there are, counted from the fine end.
    """

    def __init__(
        self, labels: int = 36, width: int = 64, hidden: int = 128, norm: Norm = "batch",
        blocks: int = 7,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = WIDTHS[-blocks:]
        self.grows = (False, *GROWS[len(GROWS) + 1 - blocks :])
        self.first = nn.Conv2d(labels, widths[0][0] * width, 3, padding=1)
        self.blocks = nn.ModuleList(
            SpadeBlock(a * width, b * width, labels, hidden, norm) for a, b in widths
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, labels: Tensor) -> Tensor:
        shrink = 2 ** sum(self.grows)
        coarse = labels.shape[2] // shrink, labels.shape[3] // shrink
        x = self.first(F.interpolate(labels, size=coarse, mode="nearest"))
        for block, grows in zip(self.blocks, self.grows, strict=True):
            x = block(F.interpolate(x, scale_factor=2.0) if grows else x, labels)
        return torch.tanh(self.last(F.leaky_relu(x, 0.2)))


def folded(model: nn.Module) -> nn.Module:
    """``model``, its spectral norms made part of the weights: what runs once it is trained."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and is_parametrized(module):
            remove_parametrizations(module, "weight")
    return model
