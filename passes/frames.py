"""Where the rows and columns of a value stand in the picture, once crops, rolls, flips and joins
have moved them. Under policy "fixed" this says which sites are active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sparsify.codegen import tables
from sparsify.codegen.geometry import Geometry, Pad
from torch.fx import Node

from .layout import Grid
from .packing.recompute import grid_sources
from .rules import Rule, find_rule
from .rules.base import Plan, layout_of
from .rules.resample import PadRule

Line = tuple[int, ...]
"""For each row (or column) that of a picture, -1 for none."""


@dataclass(frozen=True)
class Frame:
    """Some rows and columns of a picture of ``size``; None: all of them, at any resolution."""

    mask: Node
    """The active sites of the picture."""
    grid: Grid
    """The grid of ``mask``."""
    size: Grid | None = None
    lines: tuple[Line, Line] = ((), ())
    inside: Frame | None = None
    """Of a padded picture: the frame of what was padded,"""
    inside_grid: Grid | None = None
    """and its grid."""

    def on(self, grid: Grid) -> Frame:
        """That of a value on ``grid`` which is computed of one in this frame: windows without
        padding take a pad away again."""
        chain: list[tuple[Frame, Grid]] = [(self, self.grid)]
        while (last := chain[-1][0]).inside is not None and last.inside_grid is not None:
            chain.append((last.inside, last.inside_grid))
        same = [frame for frame, own in chain if own == grid]
        alike = [frame for frame, own in chain if _divide(own, grid)]
        return (*same, *alike, self)[0]

    def at(self, grid: Grid) -> Frame | None:
        """The same frame at another resolution, with its rows and columns spelt out; None where a
        coarse row is made of rows that do not stand side by side."""
        if self.size is None:
            lines = tuple(range(grid[0])), tuple(range(grid[1]))
            return Frame(self.mask, self.grid, grid, lines)
        rows, columns = (
            _rescaled(line, size, count)
            for line, size, count in zip(self.lines, self.size, grid, strict=True)
        )
        if rows is None or columns is None:
            return None
        return Frame(self.mask, self.grid, (rows[1], columns[1]), (rows[0], columns[0]))

    def named(self) -> Frame:
        """The shortest form."""
        assert self.size is not None
        whole = all(line == tuple(range(n)) for line, n in zip(self.lines, self.size, strict=True))
        return Frame(self.mask, self.grid) if whole else self


def _rescaled(line: Line, size: int, count: int) -> tuple[Line, int] | None:
    """``line`` of a picture of ``size`` rows with ``count`` entries, and its new size."""
    if count % len(line) == 0:
        times = count // len(line)
        finer = (at * times + i if at >= 0 else -1 for at in line for i in range(times))
        return tuple(finer), size * times
    if len(line) % count or size % (times := len(line) // count):
        return None
    blocks = [line[i : i + times] for i in range(0, len(line), times)]
    for block in blocks:
        start = block[0]
        wanted = (-1,) * times if start < 0 else tuple(range(start, start + times))
        if block != wanted or (start >= 0 and start % times):
            return None
    return tuple(block[0] // times for block in blocks), size // times


def _divide(first: Grid, second: Grid) -> bool:
    """Is one of the grids a resolution of the other?"""
    pairs = list(zip(first, second, strict=True))
    return all(a % b == 0 for a, b in pairs) or all(b % a == 0 for a, b in pairs)


def reach(geometry: Geometry) -> Geometry:
    """What a pad adds is active where the border is: behind it, a norm's scale say, it can be
    another value for other conditions."""
    if isinstance(geometry, Pad) and geometry.mode == "constant":
        return geometry._replace(mode="replicate")
    return geometry


class Frames:
    """The frame of every value on a grid, and the masks of frames; ``mask`` is the input's."""

    def __init__(self, plan: Plan, mask: Node, grid: Grid, masks: dict[Grid, Node]) -> None:
        self._plan = plan
        self._picture = Frame(mask, grid)
        self._masks = masks
        self._found: dict[Node, Frame] = {}

    def of(self, node: Node) -> Frame:
        """Those of its operands are known."""
        if node not in self._found:
            self._found[node] = self._find(node)
        return self._found[node]

    def mask(self, frame: Frame, grid: Grid) -> Node:
        """The active sites at a resolution."""
        if frame.size is None:
            return self._whole(frame.mask, frame.grid, grid)
        if (own := frame.at(grid)) is None:
            count = len(frame.lines[0]), len(frame.lines[1])
            return self._plan.call(tables.grid_mask, self.mask(frame, count), grid)
        assert own.size is not None
        whole = self._whole(own.mask, own.grid, own.size)
        return self._plan.call(tables.moved, whole, *own.lines)

    def _whole(self, mask: Node, before: Grid, after: Grid) -> Node:
        if mask is self._picture.mask and after in self._masks:
            return self._masks[after]
        return mask if before == after else self._plan.call(tables.grid_mask, mask, after)

    def _find(self, node: Node) -> Frame:
        rule, grid = find_rule(node), layout_of(node).grid
        assert grid is not None
        if rule is not None and (moves := rule.moves(node)):
            return self._moved(moves) or self._made_of(
                grid, [self._plan.grow(self._own(x, g.in_grid), g) for x, g in moves]
            )
        sources = grid_sources(node)
        if isinstance(rule, PadRule) and (geometry := rule.geometry(node)) is not None:
            before, own = self.of(sources[0]).on(geometry.in_grid), geometry.in_grid
            mask = self._plan.grow(self.mask(before, own), reach(geometry))
            return Frame(mask, grid, inside=before, inside_grid=own)
        if rule is not None and (read := self._reached(node, rule)) is not None:
            return Frame(read, grid)
        alike = [x for x in sources if layout_of(x).grid == grid]
        frames = list(dict.fromkeys(self.of(x).on(grid) for x in alike or sources[:1]))
        if len(frames) < 2:
            return frames[0] if frames else self._picture
        return self._made_of(grid, [self.mask(frame, grid) for frame in frames])

    def _reached(self, node: Node, rule: Rule) -> Node | None:
        image = rule.image(node)
        if type(rule).reached is Rule.reached or image not in grid_sources(node):
            return None
        own = layout_of(image).grid
        assert own is not None
        return rule.reached(node, self._own(image, own), self._plan)

    def _own(self, node: Node, grid: Grid) -> Node:
        return self.mask(self.of(node), grid)

    def _made_of(self, grid: Grid, masks: Sequence[Node]) -> Frame:
        """A picture of its own."""
        return Frame(self._plan.union(masks), grid)

    def _moved(self, moves: Sequence[tuple[Node, Geometry]]) -> Frame | None:
        """One frame of what the operands hold, where they are parts of one picture."""
        frames = [self.of(node).at(geometry.in_grid) for node, geometry in moves]
        first = frames[0]
        if first is None or any(
            f is None or (f.mask, f.size) != (first.mask, first.size) for f in frames
        ):
            return None
        lines = []
        for axis in (0, 1):
            parts = zip(frames, moves, strict=True)
            own = [_taken(f.lines[axis], g, axis) for f, (_, g) in parts if f]
            rows = list(zip(*own, strict=True))
            if len(set(own)) > 1 and any(sum(at >= 0 for at in row) > 1 for row in rows):
                return None
            lines.append(tuple(map(max, rows)))
        return Frame(first.mask, first.grid, first.size, (lines[0], lines[1])).named()


def _taken(line: Line, geometry: Geometry, axis: int) -> Line:
    """The entries of ``line`` that a geometry of one tap reads."""
    taps = geometry.taps(torch.arange(geometry.out_grid[axis], device="cpu"), axis)[:, 0].tolist()
    return tuple(line[at] if 0 <= at < len(line) else -1 for at in taps)
