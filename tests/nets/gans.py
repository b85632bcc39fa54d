"""Generators and restorers as published, a few channels wide, written from scratch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.spade import Norm, SpadeGenerator
from tests.agreement import Example
from tests.nets.gan_attention import BmmAttention, Cbam, SelfAttention
from tests.nets.gan_base import LABELS, WIDTH
from tests.nets.restorers import FourierUnit, NafBlock, RealEsrgan, SubPixel, Wavelets
from tests.nets.stylegan import FeatureStyleGan, NoisyStyleGan
from tests.nets.translation import AdaIn, cycle_gan, pix2pix


@torch.no_grad()
def _settled(model: nn.Module, inputs: dict[str, Any]) -> nn.Module:
    """After a step in training mode, which makes the statistics and spectral norms meaningful."""
    for _ in range(5):
        model.train()(**inputs)
    return model.eval()


def _labels(batch: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    numbers = torch.randint(0, LABELS, (batch, height, width), generator=generator)
    return F.one_hot(numbers, LABELS).permute(0, 3, 1, 2).float()


def _spade(norm: Norm, batch: int) -> Example:
    def draw(old: Tensor, generator: torch.Generator) -> Tensor:
        return _labels(batch, *old.shape[2:], generator).to(old)

    inputs = {"labels": _labels(batch, 16, 24, None)}
    model = SpadeGenerator(LABELS, WIDTH, WIDTH, norm, blocks=2)
    return Example(_settled(model, inputs), inputs, ("labels",), draw=draw)


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
    """Two pictures that only statistics join, so that their ``grids`` have to be said."""
    inputs = {"content": torch.randn(batch, 3, 12, 8), "style": torch.randn(batch, 3, 12, 8)}
    grids = {**dict.fromkeys(inputs, (12, 8)), **grids}
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
