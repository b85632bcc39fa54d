"""GauGAN: pictures from maps of labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from tests.nets.gan_base import LABELS, WIDTH, with_statistics


class Spade(nn.Module):
    """A norm without parameters, modulated by maps made of the resized labels."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        plain = nn.BatchNorm2d(channels, affine=False)
        self.norm = (
            with_statistics(plain) if norm == "batch" else nn.InstanceNorm2d(channels, affine=False)
        )
        self.shared = nn.Sequential(nn.Conv2d(LABELS, WIDTH, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(WIDTH, channels, 3, padding=1)
        self.beta = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.norm(x)
        hidden = self.shared(F.interpolate(labels, size=x.shape[2:], mode="nearest"))
        result: Tensor = y * (1 + self.gamma(hidden)) + self.beta(hidden)
        return result


class SpadeBlock(nn.Module):
    """Two convolutions with spectral norm, and a learnt shortcut."""

    def __init__(self, c_in: int, c_out: int, norm: str) -> None:
        super().__init__()
        middle = min(c_in, c_out)
        self.conv0 = spectral_norm(nn.Conv2d(c_in, middle, 3, padding=1))
        self.conv1 = spectral_norm(nn.Conv2d(middle, c_out, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(c_in, c_out, 1, bias=False))
        self.norms = nn.ModuleList(Spade(c, norm) for c in (c_in, middle, c_in))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = self.conv0(F.leaky_relu(self.norms[0](x, labels), 0.2))
        y = self.conv1(F.leaky_relu(self.norms[1](y, labels), 0.2))
        result: Tensor = self.shortcut(self.norms[2](x, labels)) + y
        return result


class GauGan(nn.Module):
    """From a map of labels, and a style."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(LABELS, 2 * WIDTH, 3, padding=1)
        self.style = nn.Linear(4, 2 * WIDTH)
        self.blocks = nn.ModuleList(
            (SpadeBlock(2 * WIDTH, WIDTH, norm), SpadeBlock(WIDTH, WIDTH, norm))
        )
        self.up = nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, labels: Tensor, style: Tensor) -> Tensor:
        x = F.interpolate(labels, size=(labels.shape[2] // 2, labels.shape[3] // 2))
        x = self.first(x) + self.style(style)[:, :, None, None]
        for index, block in enumerate(self.blocks):
            x = block(self.up(x) if index else x, labels)
        return torch.tanh(self.last(F.leaky_relu(x, 2e-1)))
