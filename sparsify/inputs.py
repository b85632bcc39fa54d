"""Which inputs an edit changes, and how they lie on their grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from .codegen.errors import GridError
from .passes.layout import Grid, Layout
from .passes.pictures import Group, find_pictures, with_items_apart
from .signature import Call


@dataclass(frozen=True)
class Possible:
    """What an edit may change of the inputs, whose ``names`` these are; known before a capture."""

    names: tuple[str, ...]
    named: Mapping[int, Sequence[Layout]]
    """By ``grids``: how they may lie on their grid, the most usual first."""
    others: Mapping[int, Sequence[int]]
    """Shapes of other inputs with the axes of an image or a video."""

    @staticmethod
    def of(call: Call, grids: Mapping[str, Grid | None]) -> Possible:
        """Raises :class:`GridError` for ``grids`` that do not fit the inputs."""
        names, leaves = call.signature.names, call.leaves
        unknown = sorted(set(grids) - set(names))
        if unknown:
            raise GridError(
                f"grids names {unknown[0]!r}, which is not an input: {', '.join(names)}"
            )
        inputs = list(enumerate(zip(names, leaves, strict=True)))
        pictures = {name for _, (name, leaf) in inputs if _has_axes(leaf)}
        grids = {n: grid for n, grid in grids.items() if not (_is_open(grid) and n in pictures)}
        named = {
            index: _layouts(name, leaf, grid)
            for index, (name, leaf) in inputs
            if (grid := grids.get(name)) is not None
        }
        others = {
            index: tuple(leaf.shape)
            for index, (name, leaf) in inputs
            if name not in grids and name in pictures
        }
        if not named and not others:
            raise _no_picture(names)
        return Possible(names, named, others)

    def layouts(self, module: GraphModule) -> tuple[Layout | None, ...]:
        """For each input its layout if it is named or ``module`` uses it as a picture, else None.

        Raises :class:`GridError` where the use leaves it open. Requires a canonical graph.
        """
        groups = find_pictures(module, self.named, self.others)
        if not groups:
            raise _no_picture(self.names)
        if len(groups) > 1:
            raise _undecided(self.names, groups)
        layouts = with_items_apart(module, groups[0])
        return tuple(layouts.get(index) for index in range(len(self.names)))


def _no_picture(names: Sequence[str]) -> GridError:
    return GridError(
        "no input is an image [N, C, H, W] or video [N, C, T, H, W]: name the token inputs "
        f"with grids={{name: (H, W)}}; the inputs are {', '.join(names)}"
    )


def _undecided(names: Sequence[str], groups: Sequence[Group]) -> GridError:
    readings = sorted((r for group in groups for r in group), key=lambda r: r.index)
    shapes = [f"{names[r.index]} {list(r.layout.shape)}" for r in readings]
    first, last = groups[0][0], groups[-1][0]
    grids = {names[first.index]: first.layout.grid, names[last.index]: None}
    return GridError(
        f"{' and '.join(shapes)} may be pictures, but the model does not join them as such: name "
        f"those that an edit changes, and None for the others, as in grids={grids}"
    )


def _has_axes(leaf: Any) -> bool:
    """Those of an image or a video?"""
    return isinstance(leaf, Tensor) and leaf.dim() in (4, 5)


def _is_open(grid: Grid | None) -> bool:
    return grid is not None and -1 in grid


def _layouts(name: str, leaf: Any, grid: Grid) -> list[Layout]:
    """How an input may lie on its grid, the most usual first."""
    if not isinstance(leaf, Tensor) or leaf.dim() < 2:
        raise GridError(f"grids names {name!r}, which is not a tensor [N, L, C]")
    height, width = (leaf.shape[1] // -prod(grid) if size == -1 else size for size in grid)
    if height * width == 1:
        raise GridError(f"grids says {tuple(grid)} of {name!r}: there is nothing to leave out")
    shape, pair, layouts = leaf.shape, (height, width), []
    if leaf.dim() > 2 and tuple(shape[-2:]) == pair:
        layouts.append(Layout.lines(shape))
    if leaf.dim() > 3 and tuple(shape[-3:-1]) == pair:
        layouts.append(Layout.channels_last(shape))
    if layouts:
        return layouts
    if leaf.dim() > 3:
        raise GridError(f"{name} is {list(shape)} and not on the grid {pair}")
    if height * width != shape[1]:
        raise GridError(f"{name} has {shape[1]} tokens but the grid {pair} has {height * width}")
    return [Layout.tokens(shape, pair)]
