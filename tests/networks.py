"""Random small networks, edits and masks for the property tests.

A network is a :class:`Recipe`: a few frozen steps applied in sequence. Steps hold small numbers
and bend them to the shape they meet (``groups`` becomes a divisor, a pool too large for its map
becomes smaller), so every sublist of a recipe is a network too and failures shrink well. Weights
come from the recipe's seed; they are scaled so that values stay O(1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.attention_steps import ATTENTION
from tests.channel_steps import (
    CHANNELS,
    GROUP_NORMS,
    LINEARS,
    MODULATIONS,
    POINTWISE,
    SITE_NORMS,
    SQUEEZE_EXCITE,
)
from tests.gan_steps import (
    ADA_INS,
    CHANNEL_STATISTICS,
    CHANNELS_FIRST_ATTENTION,
    CODE_BOOKS,
    GATES,
    POOLED_GATES,
    SPADES,
    STATISTICS,
    STYLE_CONVS,
)
from tests.picture_steps import CONVS, MOVES, PADS, POOLS, RESIZES, SHUFFLES, TRANSPOSED
from tests.rearranged_steps import (
    CHANNEL_ORDERS,
    COLUMNS,
    FRAME_CONVS,
    PATCHES,
    PHASES,
    REPEATS,
    WINDOWS,
)
from tests.steps import (
    CONDITION,
    CONTEXT,
    MAX_CHANNELS,
    Inputs,
    Lambda,
    Maker,
    Pair,
    Shape,
    Step,
    on_image,
)
from tests.token_steps import FRAMES, JOINT, LINEAR_ATTENTION

_UNRULED: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.flatten(2).roll(3, 2).view_as(x),
    "transpose": lambda x: x.transpose(2, 3),
    "cumsum": lambda x: x.cumsum(2) / x.shape[2],
    "linear over rows": lambda x: x + x.mean(3, keepdim=True),
}


@dataclass(frozen=True)
class Unruled(Step):
    """Operators that the compiler has no rule for."""

    kind: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
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


Arguments = tuple[Tensor, Tensor, Tensor]
"""Image, condition, context."""


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

    def inputs(self, seed: int = 0) -> Arguments:
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


JOINS = st.builds(Join, st.integers(0, 4), st.booleans())


UNRULED = st.builds(Unruled, st.sampled_from(sorted(_UNRULED)))


LOCAL: tuple[st.SearchStrategy[Step], ...] = (
    CONVS,
    POINTWISE,
    MODULATIONS,
    TRANSPOSED,
    SITE_NORMS,
    LINEARS,
    RESIZES,
    POOLS,
    PADS,
    SHUFFLES,
    MOVES,
    CHANNELS,
    JOINS,
    COLUMNS,
    PATCHES,
    WINDOWS,
    PHASES,
    REPEATS,
    CHANNEL_ORDERS,
    FRAME_CONVS,
    CODE_BOOKS,
    GATES,
    CHANNEL_STATISTICS,
    STYLE_CONVS,
)


GLOBAL: tuple[st.SearchStrategy[Step], ...] = (
    GROUP_NORMS,
    ATTENTION,
    JOINT,
    LINEAR_ATTENTION,
    FRAMES,
    SQUEEZE_EXCITE,
    UNRULED,
    STATISTICS,
    POOLED_GATES,
    CHANNELS_FIRST_ATTENTION,
    ADA_INS,
    SPADES,
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
