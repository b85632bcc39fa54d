"""Steps that move between sites: convolutions, pools, pads, resizes, shuffles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import (
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
        groups = divisor(shape.channels, self.groups)
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
        groups = divisor(shape.channels, self.groups)
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
        mode, _, antialiased = self.mode.partition(", ")
        kwargs: dict[str, Any] = {"mode": mode}
        if antialiased:
            kwargs["antialias"] = True
        elif mode in ("bilinear", "bicubic"):
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
        if self.kind == "adaptive max":
            return on_image(
                lambda x: F.adaptive_max_pool2d(x, [max(2, n - 3) for n in x.shape[2:]])
            )
        if self.kind == "and back":
            stride = tuple(map(max, kernel, self.stride))

            def back(x: Tensor) -> Tensor:
                how, size = (kernel, stride, padding), x.shape[-2:]
                values, indices = F.max_pool2d(x, *how, return_indices=True)
                return F.max_unpool2d(values * 1.5, indices, *how, size)

            return on_image(back)
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
class Move(Step):
    """Rows and columns elsewhere: rolled and perhaps back, flipped, cropped, tiles joined again.

    ``by`` is bent to the size; ``last``: as [N, H, W, C].
    """

    kind: str
    by: Pair
    last: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        order = (0, 2, 3, 1) if self.last else (0, 1, 2, 3)
        back, (y, x) = (0, 3, 1, 2) if self.last else order, (1, 2) if self.last else (2, 3)
        conv = make.fill(nn.Conv2d(shape.channels, shape.channels, 1))

        def change(image: Tensor, conv: nn.Module) -> Tensor:
            def mixed(part: Tensor) -> Tensor:
                return conv(part.permute(back)).relu().permute(order)

            return self._moved(image.permute(order), mixed, y, x).permute(back)

        return on_image(change, conv)

    def _moved(self, image: Tensor, mixed: Callable[[Tensor], Tensor], y: int, x: int) -> Tensor:
        (height, width), (down, across) = (image.shape[y], image.shape[x]), self.by
        if self.kind == "roll":
            return mixed(image.roll((down, -across), (y, x)))
        if self.kind == "roll and back":
            return image + mixed(image.roll(self.by, (y, x))).roll((-down, -across), (y, x))
        if self.kind == "flip":
            return mixed(image.flip([y, x][: 1 + down % 2]))
        if self.kind == "crop" and min(height, width) < 2:
            return mixed(image)
        if self.kind == "crop":
            down, across = min(down, height - 2), min(across, width - 2)
            return mixed(image.narrow(y, down, height - down).narrow(x, 0, width - across))
        cut = [max(1, down % height), height - max(1, down % height)]
        parts = image.split(cut, y)
        if self.kind == "halves":
            return torch.cat([parts[1], parts[0], parts[0].detach() * 0 + 1], y)
        return torch.cat([torch.cat([mixed(p) for p in part.chunk(2, x)], x) for part in parts], y)


MOVES = st.builds(
    Move,
    st.sampled_from(["roll", "roll and back", "flip", "crop", "halves", "tiles"]),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.booleans(),
)


PAD_MODES = ("constant", "reflect", "replicate", "circular")


_SMALL_PADS = st.tuples(*[st.integers(0, 2)] * 4)


CONVS = st.builds(
    Conv,
    out=OUT,
    kernel=pairs(3, 1, 2, 5),
    stride=pairs(1, 1, 2),
    dilation=pairs(1, 1, 2),
    groups=st.sampled_from([1, 1, 2, 0]),
    padding=st.sampled_from([1, 0, 2, "same"]),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    before=st.just((0, 0, 0, 0)) | _SMALL_PADS,
    bias=st.booleans(),
)


TRANSPOSED = st.builds(
    ConvTranspose,
    out=OUT,
    kernel=pairs(2, 3, 1, 4),
    stride=pairs(2, 1, 3),
    padding=st.integers(0, 2),
    output_padding=st.integers(0, 1),
    dilation=pairs(1, 1, 2),
    groups=st.sampled_from([1, 1, 2, 0]),
)


RESIZES = st.builds(
    Resize,
    st.sampled_from(
        [
            *("nearest", "bilinear", "nearest", "bilinear", "nearest-exact", "area"),
            *("bicubic", "bilinear, antialiased", "bicubic, antialiased"),
        ]
    ),
    st.booleans(),
    st.sampled_from([2.0, 1.5, 0.5, 1.3, 0.7]),
    st.booleans(),
)


POOLS = st.builds(
    Pool,
    st.sampled_from(["average", "max", "average", "max", "adaptive max", "and back"]),
    pairs(2, 3, 1),
    pairs(2, 1, 3),
    pairs(0, 1),
    st.integers(1, 2),
    st.booleans(),
)


PADS = st.builds(
    Pad,
    _SMALL_PADS | st.tuples(*[st.integers(-1, 2)] * 4),
    st.sampled_from(PAD_MODES),
    st.sampled_from([0.0, 0.5]),
)


SHUFFLES = st.builds(Shuffle, st.booleans(), st.integers(2, 3))
