"""Operators that read around each site, or resize."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.base import C, Operator


def fourier(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(spectrum * spectrum.abs().tanh(), s=x.shape[-2:], norm="ortho")


def correlated(x: Tensor) -> Tensor:
    """Local correlation: each site with its 3 x 3 neighbours (RAFT, PWC)."""
    around = F.unfold(x, 3, padding=1).view(x.shape[0], C, 9, *x.shape[2:])
    return (around * x[:, :, None]).sum(1)


def coordinates(x: Tensor) -> Tensor:
    """CoordConv."""
    y, x_ = (torch.linspace(-1, 1, size, dtype=x.dtype) for size in x.shape[2:])
    grid = torch.stack(torch.meshgrid(y, x_, indexing="ij")).expand(x.shape[0], -1, -1, -1)
    return torch.cat((x, grid), 1)


def unpooled(x: Tensor) -> Tensor:
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2)


def smoothed(x: Tensor) -> Tensor:
    """A blur with a fixed kernel in reflected borders, by groups (anti-aliased pooling)."""
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel, stride=2, groups=x.shape[1])


def warped(x: Tensor) -> Tensor:
    theta = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 1.0, 0.1]]], dtype=x.dtype)
    theta = theta.expand(x.shape[0], 2, 3)
    where = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, where, align_corners=False)


def conv_over_tokens(x: Tensor) -> Tensor:
    """One long row of sites (Mamba's local convolution)."""
    kernel = torch.tensor([0.2, 0.5, 0.3], dtype=x.dtype).expand(C, 1, 3)
    return F.conv1d(x.flatten(2), kernel, padding=1, groups=C).view_as(x)


RESAMPLING: dict[str, Operator] = {
    "fourier": fourier,
    "correlation": correlated,
    "coordinates": coordinates,
    "unpooled": unpooled,
    "blurred": smoothed,
    "warped": warped,
    "conv over tokens": conv_over_tokens,
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "area": lambda x: F.interpolate(x, size=(4, 6), mode="area"),
    "bilinear antialiased": lambda x: F.interpolate(
        x, scale_factor=0.5, mode="bilinear", antialias=True
    ),
    "pooled to 2x2": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[2:]),
    "pyramid pools": lambda x: torch.cat(
        [x, *(F.interpolate(F.avg_pool2d(x, s), size=x.shape[2:]) for s in (2, 4))], 1
    ),
    "lp pool": lambda x: F.lp_pool2d(x, 2, 2),
    "fractional crop": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
}
