"""Random small networks, edits and masks for the property tests.

A network is a :class:`Recipe`: a few frozen steps applied in sequence. Steps hold small numbers
and bend them to the shape they meet (``groups`` becomes a divisor, a pool too large for its map
becomes smaller), so every sublist of a recipe is a network too and failures shrink well. Weights
come from the recipe's seed; they are scaled so that values stay O(1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import (
    CONDITION,
    CONTEXT,
    MAX_CHANNELS,
    MAX_SITES,
    Inputs,
    Lambda,
    Maker,
    Pair,
    Shape,
    Step,
    on_image,
)
from tests.token_steps import FRAMES, JOINT, LINEAR_ATTENTION


def _divisor(number: int, wanted: int) -> int:
    return gcd(number, wanted) if wanted else number


def _legal_pads(pads: tuple[int, ...], grid: Pair, mode: str) -> list[int]:
    """(left, right, top, bottom) within what ``mode`` allows on ``grid``."""
    limit = {"reflect": -1, "circular": 0}.get(mode, 9)
    return [min(pad, max(0, grid[1 - i // 2] + limit)) for i, pad in enumerate(pads)]


@dataclass(frozen=True)
class Conv(Step):
    """``groups`` 0 is depthwise; ``before`` is an asymmetric F.pad in front."""

    out: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    groups: int
    padding: int | str
    mode: str
    before: tuple[int, int, int, int]
    bias: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        groups = _divisor(shape.channels, self.groups)
        padding, mode, stride = self.padding, self.mode, self.stride
        if isinstance(padding, str):
            stride = (1, 1)
        else:
            smallest = min(shape.grid)
            padding = min(padding, smallest - 1 if mode == "reflect" else smallest)
        added = 2 * padding if isinstance(padding, int) else 99
        padded = shape.height + sum(self.before[2:]), shape.width + sum(self.before[:2])
        reach = [
            (k - 1) * d + 1 <= size + added
            for k, d, size in zip(self.kernel, self.dilation, padded, strict=True)
        ]
        kernel = self.kernel if all(reach) else (1, 1)
        if isinstance(padding, str) and mode in ("reflect", "circular"):
            spans = [(k - 1) * d for k, d in zip(kernel, self.dilation, strict=True)]
            if any(span >= size for span, size in zip(spans, shape.grid, strict=True)):
                mode = "zeros"
        conv = nn.Conv2d(
            shape.channels,
            groups * max(1, self.out // groups),
            kernel,
            stride,
            padding,
            self.dilation,
            groups,
            self.bias,
            mode,
        )
        before = list(self.before)
        if not any(before):
            return on_image(lambda x, conv: conv(x), make.fill(conv))
        return on_image(lambda x, conv: conv(F.pad(x, before)), make.fill(conv))


@dataclass(frozen=True)
class ConvTranspose(Step):
    out: int
    kernel: Pair
    stride: Pair
    padding: int
    output_padding: int
    dilation: Pair
    groups: int

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        groups = _divisor(shape.channels, self.groups)
        stride = self.stride if shape.height * shape.width <= MAX_SITES // 4 else (1, 1)
        spans = [(k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True)]
        padding = [
            min(self.padding, ((size - 1) * s + span) // 2)
            for size, s, span in zip(shape.grid, stride, spans, strict=True)
        ]
        extra = [
            min(self.output_padding, max(s, d) - 1)
            for s, d in zip(stride, self.dilation, strict=True)
        ]
        conv = nn.ConvTranspose2d(
            shape.channels,
            groups * max(1, self.out // groups),
            self.kernel,
            stride,
            padding,
            extra,
            groups,
            dilation=self.dilation,
        )
        return on_image(lambda x, conv: conv(x), make.fill(conv))


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
        group = make.fill(nn.GroupNorm(_divisor(channels, self.groups), channels, eps=1e-2))
        if self.kind == "group on tokens":
            return on_image(lambda x, norm: norm(x.flatten(2)).view(x.shape), group)
        return on_image(lambda x, norm: norm(x), group)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[N, L, C] -> [N, heads, L, C / heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _attend(kind: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v in one of its spellings; all [N, heads, L, d]."""
    if kind == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    scale = q.shape[-1] ** -0.5
    if kind == "matmul":
        return ((q @ k.transpose(-1, -2)) * scale).softmax(-1) @ v
    if kind == "einsum":
        scores = torch.einsum("nhid,nhjd->nhij", q, k) * scale
        return torch.einsum("nhij,nhjd->nhid", scores.softmax(-1), v)
    flat = [part.flatten(0, 1) for part in (q, k, v)]
    if kind == "bmm":
        scores = torch.bmm(flat[0] * scale, flat[1].transpose(1, 2))
    else:
        base = flat[0].new_zeros(flat[0].shape[0], flat[0].shape[1], flat[1].shape[1])
        scores = torch.baddbmm(base, flat[0], flat[1].transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores.softmax(-1), flat[2]).unflatten(0, q.shape[:2])


@dataclass(frozen=True)
class Attention(Step):
    """A residual block: norm, attention of ``source`` ("self" or "cross"), projection."""

    kind: str
    source: str
    heads: int

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels = shape.channels
        heads = _divisor(channels, self.heads)
        other = channels if self.source == "self" else CONTEXT[1]
        parts = [nn.LayerNorm(channels, eps=1e-3), nn.Linear(channels, channels)]
        parts += [nn.Linear(other, 2 * channels), nn.Linear(channels, channels)]
        is_self = self.source == "self"

        def attend(
            inputs: Inputs, norm: nn.Module, query: nn.Module, both: nn.Module, out: nn.Module
        ) -> Tensor:
            tokens = inputs.x.flatten(2).transpose(1, 2)
            y = norm(tokens)
            keys, values = both(y if is_self else inputs.context).chunk(2, -1)
            mixed = _attend(self.kind, *(_heads(part, heads) for part in (query(y), keys, values)))
            tokens = tokens + out(mixed.transpose(1, 2).flatten(2))
            return tokens.transpose(1, 2).unflatten(2, inputs.x.shape[2:])

        return Lambda(attend, *(make.fill(part) for part in parts))


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
class Resize(Step):
    """By ``factor`` (which sets scale factors) or to ``factor`` times the size."""

    mode: str
    corners: bool
    factor: float
    by_size: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        height, width = (max(1, int(size * self.factor)) for size in shape.grid)
        if height * width > MAX_SITES or min(shape.grid) * self.factor < 1:
            return on_image(lambda x: x)
        kwargs: dict[str, Any] = {"mode": self.mode}
        if self.mode != "nearest":
            kwargs["align_corners"] = self.corners
        if self.by_size:
            kwargs["size"] = (height, width)
        else:
            kwargs["scale_factor"] = self.factor
        return on_image(lambda x: F.interpolate(x, **kwargs))


@dataclass(frozen=True)
class Pool(Step):
    kind: str
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: int
    count_pad: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        kernel = tuple(min(k, size) for k, size in zip(self.kernel, shape.grid, strict=True))
        padding = tuple(min(p, k // 2) for p, k in zip(self.padding, kernel, strict=True))
        if self.kind == "average":
            return on_image(
                lambda x: F.avg_pool2d(
                    x, kernel, self.stride, padding, count_include_pad=self.count_pad
                )
            )
        spans = [(k - 1) * self.dilation + 1 for k in kernel]
        fits = all(span <= size for span, size in zip(spans, shape.grid, strict=True))
        dilation = self.dilation if fits else 1
        return on_image(lambda x: F.max_pool2d(x, kernel, self.stride, padding, dilation))


@dataclass(frozen=True)
class Pad(Step):
    """Negative numbers crop."""

    pads: tuple[int, int, int, int]
    mode: str
    value: float

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        pads = _legal_pads(self.pads, shape.grid, self.mode)
        for axis, size in ((0, shape.width), (1, shape.height)):
            if size + sum(pads[2 * axis : 2 * axis + 2]) < 2:
                pads[2 * axis : 2 * axis + 2] = [0, 0]
        value = self.value if self.mode == "constant" else None
        return on_image(lambda x: F.pad(x, pads, self.mode, value))


@dataclass(frozen=True)
class Shuffle(Step):
    """Pixel shuffle ("up") or unshuffle; channels are made to fit by a projection."""

    up: bool
    factor: int

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        square = self.factor**2
        if self.up:
            if shape.height * shape.width * square > MAX_SITES:
                return on_image(lambda x: x)
            project = make.fill(nn.Conv2d(shape.channels, 2 * square, 1))
            return on_image(lambda x, conv: F.pixel_shuffle(conv(x), self.factor), project)
        if shape.height % self.factor or shape.width % self.factor:
            return on_image(lambda x: x)
        return on_image(lambda x: F.pixel_unshuffle(x, self.factor))


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


_UNRULED: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "flip": lambda x: x.flip(3),
    "transpose": lambda x: x.transpose(2, 3),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.3, mode="bicubic"),
    "cumsum": lambda x: x.cumsum(2) / x.shape[2],
    "crop": lambda x: x[:, :, 1:, :] if x.shape[2] > 2 else x,
    "halves": lambda x: torch.cat(x.chunk(2, 3)[::-1], 3),
    "linear over rows": lambda x: x + x.mean(3, keepdim=True),
}


@dataclass(frozen=True)
class Unruled(Step):
    """Operators that the compiler has no rule for."""

    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        if self.kind == "bicubic" and shape.height * shape.width > MAX_SITES // 2:
            return on_image(lambda x: x)
        return on_image(_UNRULED[self.kind])


@dataclass(frozen=True)
class Join(Step):
    """Concatenates or adds the image ``back`` steps ago, resized and projected if need be."""

    back: int
    add: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        index = max(0, len(skips) - 1 - self.back)
        old = skips[index]
        add = self.add or shape.channels + old.channels > MAX_CHANNELS

        def join(inputs: Inputs, *project: nn.Module) -> Tensor:
            skip = inputs.skips[index]
            if old.grid != shape.grid:
                skip = F.interpolate(skip, size=shape.grid)
            if add:
                return inputs.x + (project[0](skip) if project else skip)
            return torch.cat([inputs.x, skip], 1)

        if add and old.channels != shape.channels:
            return Lambda(join, make.fill(nn.Conv2d(old.channels, shape.channels, 1)))
        return Lambda(join)


HEADS: dict[str, Callable[[Tensor], Any]] = {
    "image": lambda x: x,
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "several": lambda x: {"image": x, "pooled": x.mean((2, 3)), "half": x[:, :1] * 0.5},
}


@dataclass(frozen=True)
class Recipe:
    """A network: what it takes, what it does, where its weights come from."""

    steps: tuple[Step, ...]
    grid: Pair
    batch: int
    channels: int
    dtype: torch.dtype
    head: str
    seed: int

    def build(self) -> Network:
        return Network(self).eval()

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Image, condition, context."""
        generator = torch.Generator().manual_seed(1000 * seed + self.seed)
        shapes = (self.channels, *self.grid), (CONDITION,), CONTEXT
        image, condition, context = (
            torch.randn(self.batch, *shape, generator=generator).to(self.dtype) for shape in shapes
        )
        return image, condition, context


class Network(nn.Module):
    """``forward(image, condition, context)``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        make = Maker(recipe.dtype, recipe.seed)
        self.head = HEADS[recipe.head]
        self.steps = nn.ModuleList()
        inputs = recipe.inputs()
        skips = [inputs[0]]
        with torch.no_grad():
            for step in recipe.steps:
                shapes = [Shape(*skip.shape[1:]) for skip in skips]
                self.steps.append(step.build(shapes[-1], shapes, make))
                skips.append(self.steps[-1](Inputs(skips[-1], *inputs[1:], skips)))

    def forward(self, image: Tensor, condition: Tensor, context: Tensor) -> Any:
        skips = [image]
        for step in self.steps:
            skips.append(step(Inputs(skips[-1], condition, context, skips)))
        return self.head(skips[-1])


def _pairs(*values: int) -> st.SearchStrategy[Pair]:
    """Both entries alike more often than not."""
    one = st.sampled_from(values)
    return one.map(lambda v: (v, v)) | st.tuples(one, one)


PAD_MODES = ("constant", "reflect", "replicate", "circular")
_OUT = st.sampled_from([4, 1, 3, 6, 8])
_SMALL_PADS = st.tuples(*[st.integers(0, 2)] * 4)

CONVS = st.builds(
    Conv,
    out=_OUT,
    kernel=_pairs(3, 1, 2, 5),
    stride=_pairs(1, 1, 2),
    dilation=_pairs(1, 1, 2),
    groups=st.sampled_from([1, 1, 2, 0]),
    padding=st.sampled_from([1, 0, 2, "same"]),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    before=st.just((0, 0, 0, 0)) | _SMALL_PADS,
    bias=st.booleans(),
)
TRANSPOSED = st.builds(
    ConvTranspose,
    out=_OUT,
    kernel=_pairs(2, 3, 1, 4),
    stride=_pairs(2, 1, 3),
    padding=st.integers(0, 2),
    output_padding=st.integers(0, 1),
    dilation=_pairs(1, 1, 2),
    groups=st.sampled_from([1, 1, 2, 0]),
)
POINTWISE = st.builds(Pointwise, st.sampled_from(sorted(_POINTWISE)))
GROUP_NORMS = st.builds(
    Norm,
    st.sampled_from(["group", "group", "instance", "group on tokens"]),
    st.sampled_from([1, 2, 4]),
)
ATTENTION = st.builds(
    Attention,
    st.sampled_from(["sdpa", "matmul", "einsum", "bmm", "baddbmm"]),
    st.sampled_from(["self", "cross"]),
    st.sampled_from([1, 2]),
)
JOINS = st.builds(Join, st.integers(0, 4), st.booleans())
LOCAL: tuple[st.SearchStrategy[Step], ...] = (
    CONVS,
    POINTWISE,
    st.builds(
        Modulate,
        st.sampled_from(["constant", "channels", "condition", "map", "plane", "row", "column"]),
        st.booleans(),
    ),
    TRANSPOSED,
    st.builds(Norm, st.sampled_from(["batch", "layer", "rms"]), st.just(1)),
    st.builds(Linear, _OUT, st.booleans(), st.booleans()),
    st.builds(
        Resize,
        st.sampled_from(["nearest", "bilinear"]),
        st.booleans(),
        st.sampled_from([2.0, 1.5, 0.5, 1.3, 0.7]),
        st.booleans(),
    ),
    st.builds(
        Pool,
        st.sampled_from(["average", "max"]),
        _pairs(2, 3, 1),
        _pairs(2, 1, 3),
        _pairs(0, 1),
        st.integers(1, 2),
        st.booleans(),
    ),
    st.builds(
        Pad,
        _SMALL_PADS | st.tuples(*[st.integers(-1, 2)] * 4),
        st.sampled_from(PAD_MODES),
        st.sampled_from([0.0, 0.5]),
    ),
    st.builds(Shuffle, st.booleans(), st.integers(2, 3)),
    st.builds(Channels, st.sampled_from(["gate", "swap", "unbind", "mean", "slice"])),
    JOINS,
)
GLOBAL: tuple[st.SearchStrategy[Step], ...] = (
    GROUP_NORMS,
    ATTENTION,
    JOINT,
    LINEAR_ATTENTION,
    FRAMES,
    st.builds(SqueezeExcite),
    st.builds(Unruled, st.sampled_from(sorted(_UNRULED))),
)
# What diffusion models are made of; nothing in it makes what follows dense.
DIFFUSION: tuple[st.SearchStrategy[Step], ...] = (
    CONVS,
    GROUP_NORMS,
    POINTWISE,
    ATTENTION,
    JOINT,
    JOINS,
)
GRIDS = st.sampled_from([(8, 8), (5, 9), (12, 10), (4, 4), (2, 7), (13, 6), (3, 3)])


def recipes(
    steps: tuple[st.SearchStrategy[Step], ...] = LOCAL + GLOBAL, max_steps: int = 6
) -> st.SearchStrategy[Recipe]:
    """Networks of ``steps``."""
    return st.builds(
        Recipe,
        steps=st.lists(st.one_of(steps), min_size=1, max_size=max_steps).map(tuple),
        grid=GRIDS,
        batch=st.integers(1, 2),
        channels=st.sampled_from([3, 1, 4]),
        dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]),
        head=st.sampled_from(["image", "image", "tokens", "channels last", "several"]),
        seed=st.integers(0, 999),
    )


@dataclass(frozen=True)
class MaskRecipe:
    """A mask for any grid."""

    kind: str
    seed: int

    def build(self, grid: Pair) -> Tensor:
        """bool [H, W]."""
        generator = torch.Generator().manual_seed(self.seed)
        mask = torch.zeros(grid, dtype=torch.bool)
        if self.kind == "full":
            return ~mask
        if self.kind == "border row":
            mask[-(self.seed % 2)] = True
        elif self.kind == "border column":
            mask[:, -(self.seed % 2)] = True
        elif self.kind == "random":
            density = torch.rand((), generator=generator)
            mask = torch.rand(grid, generator=generator) < density
        elif self.kind in ("one site", "blobs"):
            size = 0 if self.kind == "one site" else 1
            for _ in range(1 + 2 * size):
                y, x = (int(torch.randint(n, (), generator=generator)) for n in grid)
                mask[max(0, y - size) : y + 1 + size, max(0, x - size) : x + 1 + size] = True
        return mask


MASKS = st.builds(
    MaskRecipe,
    st.sampled_from(
        [
            *("one site", "random", "blobs", "random", "blobs"),
            *("border row", "border column", "empty", "full"),
        ]
    ),
    st.integers(0, 99),
)
