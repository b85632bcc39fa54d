"""Steps of generators: code books, gates, statistics, modulation by a vector or another picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import CONDITION, OUT, Inputs, Lambda, Maker, Shape, Step, on_image


@dataclass(frozen=True)
class CodeBook(Step):
    """The nearest of a few vectors, times how much nearer it is than the next: so that rounding
    cannot make the network jump."""

    spelling: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        book = make.normal(6, shape.channels)

        def look_up(x: Tensor, book: Tensor) -> Tensor:
            tokens = x.permute(0, 2, 3, 1).flatten(0, 2)
            if self.spelling == "cdist":
                far = torch.cdist(tokens, book, compute_mode="donot_use_mm_for_euclid_dist")
            else:
                squares = tokens.square().sum(1, keepdim=True) + book.square().sum(1)
                far = squares - 2 * tokens @ book.t()
            nearest = far.argmin(1)
            chosen = torch.arange(6) == nearest[:, None]
            margin = (far + 99.0 * chosen).amin(1, True) - far.amin(1, True)
            code = book[nearest] if self.spelling == "index" else F.embedding(nearest, book)
            code = (code * margin).view(x.shape[0], *shape.grid, -1)
            return code.permute(0, 3, 1, 2)

        return on_image(look_up, book)


@dataclass(frozen=True)
class Gate(Step):
    """Activations with weights or two halves."""

    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        if self.kind == "glu":
            return on_image(lambda x: F.glu(torch.cat((x, x.flip(1)), 1), 1))
        count = shape.channels if self.kind == "prelu by channel" else 1
        return on_image(lambda x, weight: F.prelu(x, weight), make.normal(count))


_STATISTICS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "var": lambda x, dims: x.var(dims, keepdim=True, unbiased=False),
    "std": lambda x, dims: torch.std(x, dims, keepdim=True, correction=0),
    "var_mean": lambda x, dims: torch.add(*torch.var_mean(x, dims, keepdim=True, correction=0)),
    "amax": lambda x, dims: x.amax(dims, keepdim=True),
    "amin": lambda x, dims: x.amin(dims, keepdim=True),
    "norm": lambda x, dims: torch.linalg.vector_norm(x, dim=dims, keepdim=True) / 4,
    "logsumexp": lambda x, dims: x.logsumexp(dims, keepdim=True),
    "sum": lambda x, dims: x.sum(dims, keepdim=True) / 9,
}
_AXES = {"channels": [1], "sites": [2, 3], "rows": [3], "columns": [2], "picture": [1, 2, 3]}


@dataclass(frozen=True)
class Statistics(Step):
    """Minus what some axes sum up to, or a gate made of it."""

    kind: str
    over: str
    gate: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        dims, function = _AXES[self.over], _STATISTICS[self.kind]
        if self.gate:
            return on_image(lambda x: 2 * x * function(x, dims).sigmoid())
        return on_image(lambda x: x - function(x, dims))


@dataclass(frozen=True)
class PooledGate(Step):
    """Channels gated by pools of the picture (squeeze-excite, CBAM)."""

    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        mlp = nn.Linear if self.kind == "linear" else lambda a, b: nn.Conv2d(a, b, 1)
        enter, leave = make.fill(mlp(shape.channels, 2)), make.fill(mlp(2, shape.channels))

        def gate(x: Tensor, enter: nn.Module, leave: nn.Module) -> Tensor:
            if self.kind == "linear":
                pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
                return 2 * x * leave(enter(pooled).relu()).sigmoid().view(-1, shape.channels, 1, 1)
            y = leave(enter(F.adaptive_avg_pool2d(x, 1)).relu())
            if self.kind == "both":
                y = y + leave(enter(F.adaptive_max_pool2d(x, 1)).relu())
            return 2 * x * y.sigmoid()

        return on_image(gate, enter, leave)


@dataclass(frozen=True)
class ChannelsFirstAttention(Step):
    """Of the first latent diffusion models: products by bmm, values times weights."""

    norm: bool
    coarse_keys: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels = shape.channels
        convs = [make.fill(nn.Conv2d(channels, channels, 1)) for _ in range(4)]
        group = make.fill(nn.GroupNorm(1, channels, eps=1e-2))
        coarse = self.coarse_keys and min(shape.grid) > 1

        def attend(x: Tensor, group: nn.Module, *convs: nn.Module) -> Tensor:
            y = group(x) if self.norm else x
            n, c, h, w = x.shape
            query, key, value = (conv(y) for conv in convs[:3])
            if coarse:
                key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
            query = query.reshape(n, c, h * w).permute(0, 2, 1)
            weights = torch.bmm(query, key.reshape(n, c, -1)) * c**-0.5
            weights = weights.softmax(2).permute(0, 2, 1)
            y = torch.bmm(value.reshape(n, c, -1), weights).reshape(n, c, h, w)
            return x + convs[3](y)

        return on_image(attend, group, *convs)


@dataclass(frozen=True)
class StyleConv(Step):
    """A convolution with weights for each sample, run as one by groups (StyleGAN2)."""

    out: int
    kernel: int
    demodulate: bool
    fused: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        c, kernel = shape.channels, self.kernel
        weight = make.normal(1, self.out, c, kernel, kernel, scale=(c * kernel**2) ** -0.5)
        style = make.fill(nn.Linear(CONDITION, c))

        def change(inputs: Inputs, weight: Tensor, style: nn.Module) -> Tensor:
            x, n = inputs.x, inputs.x.shape[0]
            scale = 1 + style(inputs.condition)
            own = weight * scale.view(n, 1, c, 1, 1)
            size = (own.square().sum([2, 3, 4]) + 1e-2).rsqrt()
            if not self.fused:
                y = F.conv2d(x * scale[:, :, None, None], weight[0], padding=kernel // 2)
                return y * size[:, :, None, None] if self.demodulate else y
            own = own * size.view(n, -1, 1, 1, 1) if self.demodulate else own
            x = x.reshape(1, n * c, *shape.grid)
            y = F.conv2d(x, own.flatten(0, 1), padding=kernel // 2, groups=n)
            return y.view(n, -1, *y.shape[2:])

        return Lambda(change, weight, style)


@dataclass(frozen=True)
class AdaIn(Step):
    """Normed over the sites; then mean and deviation of the condition, or of an earlier image."""

    by_view: bool
    back: int | None

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        c, index = shape.channels, max(0, len(skips) - 1 - (self.back or 0))
        style = make.fill(nn.Linear(CONDITION, 2 * c))
        project = make.fill(nn.Conv2d(skips[index].channels, c, 1))

        def change(inputs: Inputs, style: nn.Module, project: nn.Module) -> Tensor:
            mean, deviation = self._statistics(inputs.x)
            if self.back is None:
                new = style(inputs.condition)[:, :, None, None].chunk(2, 1)
            else:
                new = self._statistics(project(inputs.skips[index]))
            return (inputs.x - mean) / deviation * new[1] + new[0]

        return Lambda(change, style, project)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_view:
            n, c = x.shape[:2]
            flat = x.reshape(n, c, -1)
            deviation = (flat.var(2, unbiased=False) + 0.1).sqrt().view(n, c, 1, 1)
            return flat.mean(2).view(n, c, 1, 1), deviation
        return x.mean((2, 3), keepdim=True), (
            x.var((2, 3), keepdim=True, correction=0) + 0.1
        ).sqrt()


@dataclass(frozen=True)
class Spade(Step):
    """Scale and shift are maps made of an earlier image, after a norm without parameters."""

    norm: str
    back: int
    mode: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        index = max(0, len(skips) - 1 - self.back)
        shared = make.fill(nn.Conv2d(skips[index].channels, 4, 3, padding=1))
        maps = make.fill(nn.Conv2d(4, 2 * shape.channels, 3, padding=1))
        norm = "none" if shape.height * shape.width < 4 else self.norm
        running = make.normal(shape.channels, scale=0.3), make.near_one(shape.channels).square()

        def change(inputs: Inputs, shared: nn.Module, maps: nn.Module, *running: Tensor) -> Tensor:
            x, labels = inputs.x, inputs.skips[index]
            if labels.shape[2:] != x.shape[2:]:
                labels = F.interpolate(labels, size=x.shape[2:], mode=self.mode)
            gamma, beta = maps(shared(labels).relu()).chunk(2, 1)
            if norm == "instance":
                x = F.instance_norm(x, eps=1e-2)
            elif norm == "batch":
                x = F.batch_norm(x, *running, eps=0.1)
            return x * (1 + gamma) + beta

        return Lambda(change, shared, maps, *running)


CODE_BOOKS = st.builds(CodeBook, st.sampled_from(["cdist", "product", "index"]))
GATES = st.builds(Gate, st.sampled_from(["glu", "prelu", "prelu by channel"]))
_KINDS = st.sampled_from(sorted(_STATISTICS))
CHANNEL_STATISTICS = st.builds(Statistics, _KINDS, st.just("channels"), st.booleans())
STATISTICS = st.builds(
    Statistics,
    _KINDS,
    st.sampled_from([axes for axes in _AXES if axes != "channels"]),
    st.booleans(),
)
POOLED_GATES = st.builds(PooledGate, st.sampled_from(["conv", "linear", "both"]))
CHANNELS_FIRST_ATTENTION = st.builds(ChannelsFirstAttention, st.booleans(), st.booleans())
STYLE_CONVS = st.builds(StyleConv, OUT, st.sampled_from([3, 1]), st.booleans(), st.booleans())
ADA_INS = st.builds(AdaIn, st.booleans(), st.none() | st.integers(0, 3))
SPADES = st.builds(
    Spade,
    st.sampled_from(["instance", "batch", "none"]),
    st.integers(0, 4),
    st.sampled_from(["nearest", "bilinear"]),
)
