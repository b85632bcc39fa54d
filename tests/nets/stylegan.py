"""StyleGAN2, with its operators in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets.gan_base import WIDTH


def upfirdn(x: Tensor, kernel: Tensor, up: int, before: int, after: int) -> Tensor:
    """Zeros between the pixels, padding, a blur: the published code in plain torch."""
    _, channels, height, width = x.shape
    out = x.reshape(-1, height, 1, width, 1, 1)
    out = F.pad(out, [0, 0, 0, up - 1, 0, 0, 0, up - 1])
    out = out.view(-1, height * up, width * up, 1)
    out = F.pad(out, [0, 0, max(before, 0), max(after, 0), max(before, 0), max(after, 0)])
    out = out.permute(0, 3, 1, 2)
    size = height * up + before + after, width * up + before + after
    out = out.reshape([-1, 1, *size])
    out = F.conv2d(out, kernel.flip((0, 1))[None, None])
    return out.view(-1, channels, *out.shape[2:])


def blurred(x: Tensor, kernel: Tensor, before: int, after: int) -> Tensor:
    """The same without resizing, as a convolution by channel."""
    weight = kernel.expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, groups=x.shape[1])


class Modulated(nn.Module):
    """A convolution with weights of its own for each sample, run as one by groups."""

    def __init__(self, c_in: int, c_out: int, kernel: int, up: bool, demodulate: bool) -> None:
        super().__init__()
        self.up, self.demodulate, self.pad = up, demodulate, kernel // 2
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, kernel, kernel))
        self.scale, self.style = (c_in * kernel**2) ** -0.5, nn.Linear(4, c_in)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("blur", taps[:, None] * taps / 16)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = self.scale * self.weight * (1 + self.style(style).view(n, 1, c, 1, 1))
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        if not self.up:
            x, weight = x.reshape(1, n * c, h, w), weight.flatten(0, 1)
            out = F.conv2d(x, weight, padding=self.pad, groups=n)
            return out.view(n, -1, *out.shape[2:])
        weight = weight.transpose(1, 2).reshape(n * c, -1, *weight.shape[3:])
        out = F.conv_transpose2d(x.reshape(1, n * c, h, w), weight, stride=2, groups=n)
        return blurred(out.view(n, -1, *out.shape[2:]), self.blur, 1, 1)


class StyleBlock(nn.Module):
    """Modulated convolution, noise, bias, activation; and the picture so far."""

    def __init__(self, c_in: int, c_out: int, up: bool) -> None:
        super().__init__()
        self.conv = Modulated(c_in, c_out, 3, up, True)
        self.colours = Modulated(c_out, 3, 1, False, False)
        self.bias = nn.Parameter(torch.randn(1, c_out, 1, 1) / 4)
        self.strength = nn.Parameter(torch.tensor([0.5]))

    def forward(
        self, x: Tensor, style: Tensor, noise: Tensor, skip: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = self.conv(x, style) + self.strength * noise
        x = F.leaky_relu(x + self.bias, 0.2) * 2**0.5
        picture = self.colours(x, style)
        if skip is not None:
            picture = picture + upfirdn(skip, self.colours.blur, 2, 2, 1)
        return x, picture


class StyleGan(nn.Module):
    """From a map of features (or the learnt constant), styles, and noise for each size."""

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 4))
        self.constant = nn.Parameter(torch.randn(1, WIDTH, 4, 6)) if constant else None
        self.first = StyleBlock(WIDTH, WIDTH, False)
        self.second = StyleBlock(WIDTH, WIDTH, True)
        self.third = StyleBlock(WIDTH, WIDTH // 2, True)

    def forward(
        self, style: Tensor, noises: list[Tensor], features: Tensor | None = None
    ) -> Tensor:
        style = style * torch.rsqrt(style.square().mean(1, keepdim=True) + 1e-8)
        style = self.mapping(style)
        x, picture = features, None
        if self.constant is not None:
            x = self.constant.repeat(style.shape[0], 1, 1, 1)
        for block, noise in zip((self.first, self.second, self.third), noises, strict=True):
            x, picture = block(x, style, noise, picture)
        assert picture is not None
        return picture


class NoisyStyleGan(StyleGan):
    """The features are learnt; the finest noise is what a user edits."""

    def __init__(self) -> None:
        super().__init__(constant=True)

    def forward(self, noise: Tensor, style: Tensor, low: Tensor, middle: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(style, [low, middle, noise])


class FeatureStyleGan(StyleGan):
    """The features are an input; noise is none."""

    def forward(self, features: Tensor, style: Tensor) -> Tensor:  # type: ignore[override]
        zeros = [torch.zeros(1)] * 3
        return super().forward(style, zeros, features)
