"""What the steps of the random networks of :mod:`tests.networks` are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, sqrt
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Pair = tuple[int, int]
CONDITION = 4  # length of the conditioning vector
CONTEXT = (3, 5)  # tokens and channels of the cross-attended context
MAX_CHANNELS, MAX_SITES = 12, 400
OUT = st.sampled_from([4, 1, 3, 6, 8])


class Shape(NamedTuple):
    """Of an image: [N, channels, height, width]."""

    channels: int
    height: int
    width: int

    @property
    def grid(self) -> Pair:
        return self.height, self.width


class Maker:
    """Draws weights; one for each network."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype) * scale

    def near_one(self, *shape: int) -> Tensor:
        return 1 + self.normal(*shape, scale=0.2)

    def fill(self, module: nn.Module) -> nn.Module:
        """New weights: products keep the variance, norms are near the identity."""
        for name, weight in module.to(self.dtype).named_parameters():
            shape = tuple(weight.shape)
            if name.endswith("bias"):
                value = self.normal(*shape, scale=0.2)
            elif len(shape) == 1:
                value = self.near_one(*shape)
            else:
                value = self.normal(*shape, scale=1 / sqrt(weight[0].numel()))
            weight.data.copy_(value)
        return module


class Inputs(NamedTuple):
    """Everything a step can read: the image, two conditions, and all earlier images."""

    x: Tensor
    condition: Tensor
    context: Tensor
    skips: list[Tensor]


class Lambda(nn.Module):
    """A function of the inputs, and the modules and constants it uses."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = [f"part_{index}" for index in range(len(parts))]
        for name, part in zip(self.names, parts, strict=True):
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.function(inputs, *(getattr(self, name) for name in self.names))


def on_image(function: Callable[..., Tensor], *parts: nn.Module | Tensor) -> Lambda:
    """The same for a function of the image alone."""
    return Lambda(lambda inputs, *own: function(inputs.x, *own), *parts)


@dataclass(frozen=True)
class Step:
    """One part of a network; ``skips`` are the shapes of all earlier images, the latest last."""

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        raise NotImplementedError


def divisor(number: int, wanted: int) -> int:
    return gcd(number, wanted) if wanted else number


def pairs(*values: int) -> st.SearchStrategy[Pair]:
    """Both entries alike more often than not."""
    one = st.sampled_from(values)
    return one.map(lambda v: (v, v)) | st.tuples(one, one)
