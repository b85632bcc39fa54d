"""Generators and restorers as published, a few channels wide, written from scratch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from tests.agreement import Example

LABELS, WIDTH = 5, 8


def _with_statistics(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """As if it had been trained."""
    norm.running_mean = torch.randn(norm.num_features) / 4
    norm.running_var = 0.5 + torch.rand(norm.num_features)
    return norm


# -- SPADE --------------------------------------------------------------------------------------


class Spade(nn.Module):
    """A norm without parameters, modulated by maps made of the resized labels."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        plain = nn.BatchNorm2d(channels, affine=False)
        self.norm = (
            _with_statistics(plain)
            if norm == "batch"
            else nn.InstanceNorm2d(channels, affine=False)
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


# -- pix2pix, CycleGAN --------------------------------------------------------------------------


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


# -- StyleGAN2 ----------------------------------------------------------------------------------


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


# -- others -------------------------------------------------------------------------------------


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


class FourierUnit(nn.Module):
    """Of LaMa: a convolution in the frequencies beside one of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect")
        self.conv = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 1)
        self.norm = _with_statistics(nn.BatchNorm2d(2 * WIDTH))

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
            *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), _with_statistics(nn.BatchNorm2d(WIDTH))),
            *(nn.PReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
        )
        self.up = nn.Sequential(
            nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()
        )
        self.last = nn.Conv2d(WIDTH, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return (self.last(self.up(y + self.block(y))) + 1) / 2


@torch.no_grad()
def _settled(model: nn.Module, inputs: dict[str, Any]) -> nn.Module:
    """After a step in training mode, which makes the statistics and spectral norms meaningful."""
    for _ in range(5):
        model.train()(**inputs)
    return model.eval()


# -- examples -----------------------------------------------------------------------------------


def _labels(batch: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    numbers = torch.randint(0, LABELS, (batch, height, width), generator=generator)
    return F.one_hot(numbers, LABELS).permute(0, 3, 1, 2).float()


def _spade(norm: str, batch: int) -> Example:
    def draw(old: Tensor, generator: torch.Generator) -> Tensor:
        return _labels(batch, *old.shape[2:], generator).to(old)

    inputs = {"labels": _labels(batch, 16, 24, None), "style": torch.randn(batch, 4)}
    return Example(_settled(GauGan(norm), inputs), inputs, ("labels",), draw=draw)


def _style(batch: int) -> Example:
    noise = {
        name: torch.randn(batch, 1, 4 * k, 6 * k)
        for name, k in (("noise", 4), ("low", 1), ("middle", 2))
    }
    inputs = {**noise, "style": torch.randn(batch, 4)}
    return Example(NoisyStyleGan(), inputs, ("noise",))


def _features(batch: int) -> Example:
    inputs = {"features": torch.randn(batch, WIDTH, 6, 8), "style": torch.randn(batch, 4)}
    return Example(FeatureStyleGan(), inputs, ("features",))


def _adain(by_view: bool, edits: tuple[str, ...], batch: int, **grids: Any) -> Example:
    inputs = {"content": torch.randn(batch, 3, 12, 8), "style": torch.randn(batch, 3, 12, 8)}
    return Example(AdaIn(by_view), inputs, edits, grids)


def _picture(model: nn.Module, batch: int, channels: int) -> Example:
    name = next(iter(inspect.signature(model.forward).parameters))
    inputs = {name: torch.randn(batch, channels, 12, 16)}
    return Example(_settled(model, inputs), inputs, (name,))


def _upscaled(model: nn.Module, batch: int) -> Example:
    return Example(model, {"x": torch.randn(batch, 3, 10, 8)})


GANS: dict[str, Callable[[int], Example]] = {
    "spade, batch norm": lambda batch: _spade("batch", batch),
    "spade, instance norm": lambda batch: _spade("instance", batch),
    "pix2pix": lambda batch: Example(pix2pix(), {"x": torch.randn(batch, 3, 16, 24)}),
    "cyclegan": lambda batch: _picture(cycle_gan(), batch, 3),
    "stylegan2, noise": _style,
    "stylegan2, features": _features,
    "adain": lambda batch: _adain(False, ("content",), batch),
    "adain, by views": lambda batch: _adain(True, ("content", "style"), batch),
    "adain, style a condition": lambda batch: _adain(False, ("content",), batch, style=None),
    "cbam": lambda batch: _picture(Cbam(), batch, WIDTH),
    "wavelets": lambda batch: _picture(Wavelets(), batch, WIDTH),
    "real-esrgan": lambda batch: _upscaled(RealEsrgan(), batch),
    "srgan": lambda batch: _upscaled(SubPixel(), batch),
    "nafnet": lambda batch: _picture(NafBlock(), batch, WIDTH),
    "sagan": lambda batch: _picture(SelfAttention(), batch, WIDTH),
    "vqgan attention": lambda batch: _picture(BmmAttention(), batch, WIDTH),
    "lama": lambda batch: _picture(FourierUnit(), batch, WIDTH),
}


def gan(name: str, batch: int = 1) -> Example:
    torch.manual_seed(0)
    return GANS[name](batch)
