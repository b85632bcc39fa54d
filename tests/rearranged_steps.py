"""Steps that cut pictures into columns, patches, windows, phases or frames, and join them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import (
    MAX_CHANNELS,
    MAX_SITES,
    OUT,
    Maker,
    Pair,
    Shape,
    Step,
    divisor,
    on_image,
    pairs,
)


@dataclass(frozen=True)
class Columns(Step):
    """unfold and a product; back by fold, or as the picture of the columns."""

    kernel: Pair
    stride: Pair
    padding: Pair
    out: int
    fold: bool
    spelling: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        padding = tuple(min(p, k // 2) for p, k in zip(self.padding, self.kernel, strict=True))
        sizes = [size + 2 * p for size, p in zip(shape.grid, padding, strict=True)]
        kernel = tuple(min(k, size) for k, size in zip(self.kernel, sizes, strict=True))
        grid = [(size - k) // s + 1 for size, k, s in zip(sizes, kernel, self.stride, strict=True)]
        width = shape.channels * kernel[0] * kernel[1]
        mix = make.fill(nn.Conv1d(width, width if self.fold else self.out, 1))

        def change(x: Tensor, mix: nn.Conv1d) -> Tensor:
            y = F.unfold(x, kernel, 1, padding, self.stride)
            y = mix(y) if self.spelling == "conv1d" else mix.weight[:, :, 0] @ y
            if self.fold:
                return x + F.fold(y, shape.grid, kernel, 1, padding, self.stride) / 4
            return y.unflatten(2, grid)

        return on_image(change, mix)


@dataclass(frozen=True)
class Patches(Step):
    """Patches, or every n-th site, as tokens; a product, and back. ``order`` as in einops."""

    size: Pair
    dilated: bool
    order: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        (p, q), (height, width) = _fitting(self.size, shape.grid), shape.grid
        linear = make.fill(nn.Linear(p * q * shape.channels, p * q * shape.channels))
        axes = "bcphqw" if self.dilated else "bchpwq"
        known = {"b": -1, "c": shape.channels, "p": p, "q": q, "h": height // p, "w": width // q}
        order = [axes.index(axis) for axis in f"bhw{self.order}"]

        def change(x: Tensor, linear: nn.Module) -> Tensor:
            parts = x.reshape([known[axis] for axis in axes]).permute(order)
            tokens = linear(parts.flatten(3).flatten(1, 2)).tanh()
            back = [order.index(dim) for dim in range(6)]
            return tokens.reshape(parts.shape).permute(back).reshape(x.shape)

        return on_image(change, linear)


@dataclass(frozen=True)
class Windows(Step):
    """Attention inside windows that do not shift."""

    size: Pair
    heads: int
    spelling: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        (p, q), (channels, height, width) = _fitting(self.size, shape.grid), shape
        heads = divisor(channels, self.heads)
        qkv, out = (
            make.fill(nn.Linear(channels, 3 * channels)),
            make.fill(nn.Linear(*[channels] * 2)),
        )
        bias = make.normal(heads, p * q, p * q)

        def attend(x: Tensor, qkv: nn.Module, out: nn.Module, bias: Tensor) -> Tensor:
            at_end = x.permute(0, 2, 3, 1)
            windows = at_end.reshape(-1, height // p, p, width // q, q, channels)
            windows = windows.transpose(2, 3).reshape(-1, p * q, channels)
            parts = qkv(windows).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            if self.spelling == "sdpa":
                y = F.scaled_dot_product_attention(*parts)
            else:
                y = (parts[0] @ parts[1].transpose(-1, -2) + bias).softmax(-1) @ parts[2]
            y = out(y.transpose(1, 2).flatten(2))
            y = y.reshape(-1, height // p, width // q, p, q, channels).transpose(2, 3)
            return x + y.reshape(at_end.shape).permute(0, 3, 1, 2)

        return on_image(attend, qkv, out, bias)


def _fitting(size: Pair, grid: Pair) -> Pair:
    return divisor(grid[0], size[0]), divisor(grid[1], size[1])


@dataclass(frozen=True)
class Phases(Step):
    """Every n-th row and column: stacked to channels, as Haar bands, there and back, or one."""

    kind: str
    first: Pair
    stride: Pair

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        (a, b), (s, t) = self.first, self.stride
        one = self.kind == "one" or shape.height % 2 or shape.width % 2
        if one:
            far = a + s >= shape.height or b + t >= shape.width
            return on_image(lambda x: x if far else x[..., a::s, b::t])
        keep = max(1, MAX_CHANNELS // 4)

        def change(x: Tensor) -> Tensor:
            x = x[:, :keep]
            bands = [x[..., i::2, j::2] for i in range(2) for j in range(2)]
            if self.kind == "stack":
                return torch.stack(bands, 1).flatten(1, 2)
            if self.kind == "cat":
                return torch.cat(bands, 1)
            p, q, r, u = bands
            haar = torch.cat((p + q + r + u, p - q + r - u, p + q - r - u, p - q - r + u), 1) / 2
            return _woven(haar.tanh()) if self.kind == "haar and back" else haar

        return on_image(change)


def _woven(x: Tensor) -> Tensor:
    a, b, c, d = x.chunk(4, 1)
    y = x.new_zeros(x.shape[0], x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    y[..., ::2, ::2], y[..., ::2, 1::2] = a + b + c + d, a - b + c - d
    y[..., 1::2, ::2], y[..., 1::2, 1::2] = a + b - c - d, a - b - c + d
    return y / 2


@dataclass(frozen=True)
class Repeat(Step):
    """Rows and columns one after another: by repeat_interleave, expand or stack."""

    kind: str
    rows: int
    columns: int

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        rows, columns = self.rows, self.columns
        if rows * columns * shape.height * shape.width > MAX_SITES:
            return on_image(lambda x: x)

        def change(x: Tensor) -> Tensor:
            if self.kind == "repeat_interleave":
                return x.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
            if self.kind == "stack":
                x = torch.stack([x] * columns, -1).flatten(-2)
                return torch.stack([x] * rows, -2).flatten(-3, -2)
            n, c, h, w = x.shape
            wide = x[:, :, :, None, :, None].expand(n, c, h, rows, w, columns)
            return wide.reshape(n, c, h * rows, w * columns)

        return on_image(change)


_ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.roll(1, 1),
    "roll more": lambda x: x.roll((-2, 0), (1, 2)),
    "flip": lambda x: x.flip(1),
    "index": lambda x: x[:, torch.arange(x.shape[1]).flip(0)],
    "index_select": lambda x: x.index_select(1, torch.arange(x.shape[1]).roll(1)),
    "shuffle": lambda x: x.unflatten(1, (-1, divisor(x.shape[1], 2))).transpose(1, 2).flatten(1, 2),
    "shifted": lambda x: torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1),
    "written": lambda x: x.clone().index_fill_(1, torch.tensor([0]), 0.5),
}


@dataclass(frozen=True)
class ChannelOrder(Step):
    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        if self.kind == "known":
            return on_image(lambda x, order: x[:, order], torch.arange(shape.channels).flip(0))
        return on_image(_ORDERS[self.kind])


@dataclass(frozen=True)
class FrameConv(Step):
    """Channels taken as frames; a convolution along them at every site."""

    kernel: int
    groups: int
    columns_first: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        enter = make.fill(nn.Conv2d(shape.channels, 6, 1))
        conv = make.fill(nn.Conv1d(2, 2, self.kernel, padding=self.kernel // 2, groups=self.groups))
        leave = make.fill(nn.Conv2d(6, shape.channels, 1))

        def change(x: Tensor, enter: nn.Module, conv: nn.Module, leave: nn.Module) -> Tensor:
            video = enter(x).unflatten(1, (3, 2))  # [N, T, C, H, W]
            order = (0, 4, 3, 2, 1) if self.columns_first else (0, 3, 4, 2, 1)
            series = video.permute(order)
            y = conv(series.flatten(0, 2)).view_as(series)
            back = (0, 4, 3, 2, 1) if self.columns_first else (0, 4, 3, 1, 2)
            return x + leave(y.permute(back).flatten(1, 2))

        return on_image(change, enter, conv, leave)


_SIZES = pairs(2, 4, 3, 1)
COLUMNS = st.builds(
    Columns,
    pairs(3, 2, 1, 4),
    pairs(1, 2, 3),
    pairs(1, 0),
    OUT,
    st.sampled_from([False, True]),
    st.sampled_from(["product", "conv1d"]),
)
PATCHES = st.builds(
    Patches, _SIZES, st.sampled_from([False, False, True]), st.sampled_from(["pqc", "cpq", "pcq"])
)
WINDOWS = st.builds(Windows, _SIZES, st.sampled_from([1, 2]), st.sampled_from(["sdpa", "matmul"]))
PHASES = st.builds(
    Phases,
    st.sampled_from(["stack", "cat", "haar", "haar and back", "one"]),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    pairs(2, 1, 3),
)
REPEATS = st.builds(
    Repeat,
    st.sampled_from(["repeat_interleave", "expand", "stack"]),
    st.integers(1, 3),
    st.integers(1, 3),
)
CHANNEL_ORDERS = st.builds(ChannelOrder, st.sampled_from([*sorted(_ORDERS), "known"]))
FRAME_CONVS = st.builds(FrameConv, st.sampled_from([3, 1]), st.integers(1, 2), st.booleans())
