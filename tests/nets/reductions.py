"""Operators that sum, scan, order or pick, over channels or sites."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.base import C, Operator


def cumulative(x: Tensor) -> Tensor:
    return (x.flatten(2).cumsum(-1) / 10).view_as(x)


def channel_attention(x: Tensor) -> Tensor:
    """Over channels: the product sums over the sites (XCiT, Restormer)."""
    tokens = F.normalize(x.flatten(2), dim=-1)
    return ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ x.flatten(2)).view_as(x)


def linear_attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    query, key = tokens.softmax(-1), tokens.softmax(1)
    result = query @ (key.transpose(1, 2) @ tokens)
    return result.transpose(1, 2).reshape(x.shape)


def strips(x: Tensor) -> Tensor:
    """Means of rows and of columns as gates (coordinate attention)."""
    return x * x.mean(3, keepdim=True).sigmoid() * x.mean(2, keepdim=True).sigmoid()


def quantised(x: Tensor) -> Tensor:
    """The nearest of a few vectors for each site (VQ-VAE)."""
    book = (torch.arange(6 * C, dtype=x.dtype) * 1.7).sin().view(6, C)
    tokens = x.permute(0, 2, 3, 1).reshape(-1, C)
    nearest = torch.cdist(tokens, book).argmin(1)
    code = book[nearest].view(x.shape[0], *x.shape[2:], C).permute(0, 3, 1, 2)
    return x + (code - x)


def one_hot_of_argmax(x: Tensor) -> Tensor:
    return F.one_hot(x.argmax(1), C).permute(0, 3, 1, 2).to(x.dtype)


def sorted_channels(x: Tensor) -> Tensor:
    values, _ = x.sort(1)
    return torch.cat((values, x.topk(2, 1).values), 1)


def whitened(x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)


def by_variance(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True)
    return (x - mean) * (variance + 1e-3).rsqrt()


def complex_product(x: Tensor) -> Tensor:
    z = torch.complex(x[:, :4], x[:, 4:])
    z = z * z.conj() + z
    return torch.cat((z.real, z.imag), 1)


def hole_filling(x: Tensor) -> Tensor:
    outside = (x - x.mean(1, keepdim=True)).abs() > 0.3
    return torch.where(outside, x.clamp(-1, 1), torch.zeros_like(x))


REDUCTIONS: dict[str, Operator] = {
    "cumsum": cumulative,
    "cumsum of rows": lambda x: x.cumsum(2) / 4,
    "cumsum of channels": lambda x: x.cumsum(1).cumprod(1).tanh(),
    "channel attention": channel_attention,
    "linear attention": linear_attention,
    "strips": strips,
    "strip pools": lambda x: (
        x * F.adaptive_avg_pool2d(x, (None, 1)) + F.adaptive_max_pool2d(x, (1, None))
    ),
    "quantised": quantised,
    "one hot": one_hot_of_argmax,
    "sorted": sorted_channels,
    "whitened": whitened,
    "variance of channels": by_variance,
    "complex": complex_product,
    "where": hole_filling,
    "softmax of sites": lambda x: x.flatten(2).softmax(-1).view_as(x) * x,
    "norm of sites": lambda x: x / (x.flatten(1).norm(dim=1)[:, None, None, None] + 1),
    "extremes": lambda x: (x - x.amin((2, 3), keepdim=True)) / (x.amax() - x.amin() + 1),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "max of channels": lambda x: torch.cat(
        (x.max(1, keepdim=True).values, x.logsumexp(1, keepdim=True), x.argmin(1, True).to(x)), 1
    ),
    "glu": lambda x: F.glu(torch.cat((x, x.square()), 1), 1),
}
