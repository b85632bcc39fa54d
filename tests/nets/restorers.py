"""Restorers and upscalers: wavelets, Real-ESRGAN, SRGAN, NAFNet, LaMa."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.gan_base import WIDTH, with_statistics


class Wavelets(nn.Module):
    """Haar bands by convolutions of stride 2, and back (SWAGAN, WaveletSR)."""

    def __init__(self) -> None:
        super().__init__()
        low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
        bands = [a[:, None] * b / 2 for a in (low, high) for b in (low, high)]
        self.register_buffer("bands", torch.stack(bands)[:, None].repeat(WIDTH, 1, 1, 1))
        self.middle = nn.Conv2d(4 * WIDTH, 4 * WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.bands, stride=2, groups=WIDTH)
        return F.conv_transpose2d(F.relu(self.middle(y)), self.bands, stride=2, groups=WIDTH)


class Dense(nn.Module):
    """A residual dense block."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(WIDTH + i * growth, growth if i < 2 else WIDTH, 3, padding=1)
            for i in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.convs[:-1]:
            parts.append(F.leaky_relu(layer(torch.cat(parts, 1)), 0.2))
        result: Tensor = self.convs[-1](torch.cat(parts, 1)) * 0.2 + x
        return result


class RealEsrgan(nn.Module):
    """Pixels to channels, blocks inside a residual block, and resizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(12, WIDTH, 3, padding=1)
        self.body = nn.Sequential(Dense(), Dense())
        self.up1, self.up2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.pixel_unshuffle(x, 2))
        y = y + 0.2 * self.body(y)
        y = F.leaky_relu(self.up1(F.interpolate(y, scale_factor=2)), 0.2)
        y = F.leaky_relu(self.up2(F.interpolate(y, scale_factor=2)), 0.2)
        return self.last(y)


class NafBlock(nn.Module):
    """Simple gates and simple channel attention (NAFNet)."""

    def __init__(self) -> None:
        super().__init__()
        c = WIDTH
        self.norm = nn.LayerNorm(c)
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=2)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv3, self.beta = nn.Conv2d(c, c, 1), nn.Parameter(torch.randn(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        first, second = self.conv2(self.conv1(y)).chunk(2, dim=1)
        y = first * second
        return x + self.conv3(y * self.attention(y)) * self.beta


class FourierUnit(nn.Module):
    """Of LaMa: a convolution in the frequencies beside one of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect")
        self.conv = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 1)
        self.norm = with_statistics(nn.BatchNorm2d(2 * WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        parts = torch.stack((spectrum.real, spectrum.imag), -1).permute(0, 1, 4, 2, 3)
        parts = parts.contiguous().view(x.shape[0], -1, *parts.shape[3:])
        parts = F.relu(self.norm(self.conv(parts)))
        parts = parts.view(x.shape[0], -1, 2, *parts.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
        spectrum = torch.complex(parts[..., 0], parts[..., 1])
        y = torch.fft.irfftn(spectrum, s=x.shape[-2:], dim=(-2, -1), norm="ortho")
        return F.relu(self.local(x) + y)


class SubPixel(nn.Module):
    """Residuals, PReLU, batch norms and pixel shuffle (SRGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, WIDTH, 9, padding=4), nn.PReLU(WIDTH))
        self.block = nn.Sequential(
            *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), with_statistics(nn.BatchNorm2d(WIDTH))),
            *(nn.PReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
        )
        self.up = nn.Sequential(
            nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()
        )
        self.last = nn.Conv2d(WIDTH, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return (self.last(self.up(y + self.block(y))) + 1) / 2
