"""Steps at every site, and norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import (
    CONDITION,
    OUT,
    Lambda,
    Maker,
    Shape,
    Step,
    divisor,
    on_image,
)

_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "in place": lambda x: (x + 0.5).relu_().mul_(0.7),
    "clamp": lambda x: x.clamp(-1, 2),
    "where": lambda x: torch.where(x > 0, x, x * x),
}


@dataclass(frozen=True)
class Pointwise(Step):
    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        return on_image(_POINTWISE[self.kind])


@dataclass(frozen=True)
class Modulate(Step):
    """Times or plus a constant, a map that was learned, or channels made from the condition."""

    by: str
    multiply: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels, height, width = shape
        combine = torch.mul if self.multiply else torch.add
        if self.by == "condition":
            linear = make.fill(nn.Linear(CONDITION, channels))
            return Lambda(
                lambda inputs, own: combine(inputs.x, own(inputs.condition)[:, :, None, None]),
                linear,
            )
        sizes = {
            "constant": (),
            "channels": (channels, 1, 1),
            "map": (1, channels, height, width),
            "plane": (height, width),
            "row": (1, 1, 1, width),
            "column": (channels, height, 1),
        }
        value = make.near_one(*sizes[self.by])
        return on_image(lambda x, own: combine(x, own), value)


@dataclass(frozen=True)
class Norm(Step):
    kind: str
    groups: int

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels = shape.channels
        if self.kind in ("layer", "rms"):
            make_norm = nn.LayerNorm if self.kind == "layer" else nn.RMSNorm
            norm = make.fill(make_norm(channels, eps=1e-3))
            return on_image(lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm)
        if self.kind == "batch":
            batch = make.fill(nn.BatchNorm2d(channels))
            assert isinstance(batch, nn.BatchNorm2d)
            batch.running_mean = make.normal(channels, scale=0.3)
            batch.running_var = make.near_one(channels).square() + 0.1
            return on_image(lambda x, norm: norm(x), batch)
        if shape.height * shape.width < 4:
            return on_image(lambda x: x)
        if self.kind == "instance":
            instance = make.fill(nn.InstanceNorm2d(channels, eps=1e-2, affine=self.groups == 1))
            return on_image(lambda x, norm: norm(x), instance)
        group = make.fill(nn.GroupNorm(divisor(channels, self.groups), channels, eps=1e-2))
        if self.kind == "group on tokens":
            return on_image(lambda x, norm: norm(x.flatten(2)).view(x.shape), group)
        return on_image(lambda x, norm: norm(x), group)


@dataclass(frozen=True)
class Linear(Step):
    """On tokens [N, L, C] or on [N, H, W, C]; ``gated`` multiplies two halves."""

    out: int
    tokens: bool
    gated: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        linear = make.fill(nn.Linear(shape.channels, 2 * self.out if self.gated else self.out))

        def channels_last(x: Tensor, linear: nn.Module) -> Tensor:
            grid = x.shape[2:]
            if self.tokens:
                x = x.reshape(*x.shape[:2], -1)
            y = linear(x.movedim(1, -1))
            if self.gated:
                value, gate = y.chunk(2, dim=-1)
                y = value * F.gelu(gate)
            y = y.movedim(-1, 1)
            return y.reshape(*y.shape[:2], *grid) if self.tokens else y

        return on_image(channels_last, linear)


@dataclass(frozen=True)
class Channels(Step):
    """Takes channels apart and puts them together."""

    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels = shape.channels
        half = channels // 2
        if half == 0 or (self.kind == "gate" and channels % 2):
            return on_image(lambda x: x)

        def change(x: Tensor) -> Tensor:
            if self.kind == "gate":
                value, gate = x.chunk(2, 1)
                return value * gate.sigmoid()
            if self.kind == "swap":
                first, second = x.split([half, channels - half], 1)
                return torch.cat([second, first], 1)
            if self.kind == "unbind":
                return torch.stack(x.unbind(1)[::-1], 1)
            if self.kind == "mean":
                return x - x.mean(1, keepdim=True)
            return x[:, half:]

        return on_image(change)


@dataclass(frozen=True)
class SqueezeExcite(Step):
    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        conv = make.fill(nn.Conv2d(shape.channels, shape.channels, 1))
        return on_image(lambda x, conv: x * conv(x.mean((2, 3), keepdim=True)).sigmoid() * 2, conv)


POINTWISE = st.builds(Pointwise, st.sampled_from(sorted(_POINTWISE)))


GROUP_NORMS = st.builds(
    Norm,
    st.sampled_from(["group", "group", "instance", "group on tokens"]),
    st.sampled_from([1, 2, 4]),
)


MODULATIONS = st.builds(
    Modulate,
    st.sampled_from(["constant", "channels", "condition", "map", "plane", "row", "column"]),
    st.booleans(),
)


SITE_NORMS = st.builds(Norm, st.sampled_from(["batch", "layer", "rms"]), st.just(1))


LINEARS = st.builds(Linear, OUT, st.booleans(), st.booleans())


CHANNELS = st.builds(Channels, st.sampled_from(["gate", "swap", "unbind", "mean", "slice"]))


SQUEEZE_EXCITE = st.builds(SqueezeExcite)
