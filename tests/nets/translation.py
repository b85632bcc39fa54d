"""From picture to picture: pix2pix, CycleGAN, AdaIN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.nets.gan_base import WIDTH


class Level(nn.Module):
    """One level of the U-Net around the next, as published."""

    def __init__(self, c_out: int, c_in: int, inner: Level | None, outermost: bool = False) -> None:
        super().__init__()
        down = nn.Conv2d(c_out, c_in, 4, 2, 1)
        up = nn.ConvTranspose2d(c_in if inner is None else 2 * c_in, c_out, 4, 2, 1)
        norm = nn.InstanceNorm2d
        parts: list[nn.Module]
        if outermost:
            parts = [down, *([inner] if inner else []), nn.ReLU(True), up, nn.Tanh()]
        elif inner is None:
            parts = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, norm(c_out)]
        else:
            parts = [nn.LeakyReLU(0.2, True), down, norm(c_in), inner]
            parts += [nn.ReLU(True), up, norm(c_out), nn.Dropout(0.5)]
        self.model, self.outermost = nn.Sequential(*parts), outermost

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result if self.outermost else torch.cat([x, result], 1)


def pix2pix() -> nn.Module:
    inner = Level(WIDTH, 2 * WIDTH, Level(2 * WIDTH, 2 * WIDTH, None))
    return Level(3, WIDTH, inner, outermost=True)


class Residual(nn.Module):
    """Of CycleGAN: reflected borders and instance norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for last in (False, True):
            parts += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)]
            parts += [nn.InstanceNorm2d(channels), nn.Identity() if last else nn.ReLU(True)]
        self.block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def cycle_gan() -> nn.Module:
    w = WIDTH
    return nn.Sequential(
        *(nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), nn.InstanceNorm2d(w), nn.ReLU(True)),
        *(nn.Conv2d(w, 2 * w, 3, 2, 1), nn.InstanceNorm2d(2 * w), nn.ReLU(True)),
        Residual(2 * w),
        *(nn.ConvTranspose2d(2 * w, w, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(w)),
        *(nn.ReLU(True), nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh()),
    )


class AdaIn(nn.Module):
    """Statistics of a picture of style on the features of the content."""

    def __init__(self, by_view: bool) -> None:
        super().__init__()
        self.by_view = by_view
        self.encode = nn.Sequential(
            *(nn.Conv2d(3, WIDTH, 1), nn.ReflectionPad2d(1), nn.Conv2d(WIDTH, WIDTH, 3)),
            *(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
        )
        self.decode = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU()),
            *(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(WIDTH, 3, 3)),
        )

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_view:  # as in most repositories
            n, c = x.shape[:2]
            flat = x.view(n, c, -1)
            deviation = (flat.var(dim=2) + 1e-5).sqrt().view(n, c, 1, 1)
            return flat.mean(dim=2).view(n, c, 1, 1), deviation
        mean = x.mean((2, 3), keepdim=True)
        return mean, ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        features = self.encode(content)
        (mean, deviation), (to_mean, to_deviation) = map(
            self._statistics, (features, self.encode(style))
        )
        normed = (features - mean.expand_as(features)) / deviation
        result: Tensor = self.decode(normed * to_deviation + to_mean)
        return result
