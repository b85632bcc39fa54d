"""Where the rows and columns of values stand in the picture, found by moving their numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from tests.arrangement import Arrangement, is_move
from tests.steps import Pair


def pooled(mask: Tensor, grid: Pair) -> Tensor:
    return F.adaptive_max_pool2d(mask.double()[None], grid)[0] > 0


@dataclass(frozen=True, eq=False)
class Standing:
    """Rows and columns of a picture of ``size``, -1 for none; ``size`` None: all, at any size."""

    picture: Tensor
    size: Pair | None = None
    lines: tuple[list[int], list[int]] = ((), ())  # type: ignore[assignment]
    inside: Standing | None = None
    """What was padded to this picture,"""
    inside_grid: Pair = (1, 1)
    """and its grid."""

    def on(self, grid: Pair) -> Standing:
        """Of a value on ``grid`` behind it: the pad is gone where only what was padded fits."""
        own: Standing = self
        fits: list[Standing] = []
        size: Pair = tuple(self.picture.shape)  # type: ignore[assignment]
        while True:
            if size == grid:
                return own
            fits += [own] if _fits(size, grid) else []
            if own.inside is None:
                return (*fits, self)[0]
            size, own = own.inside_grid, own.inside

    def at(self, grid: Pair) -> Standing | None:
        if self.size is None:
            return replace(self, size=grid, lines=(list(range(grid[0])), list(range(grid[1]))))
        size, lines = list(self.size), list(self.lines)
        for axis, count in enumerate(grid):
            line = torch.tensor(lines[axis]).double()
            if count % len(line) == 0:
                times = count // len(line)
                size[axis] *= times
                fine = line[:, None] * times + torch.arange(times)
                line = torch.where(line[:, None] < 0, -1.0, fine).flatten()
            elif len(line) % count == 0:
                times = len(line) // count
                parts = line.view(count, times)
                wanted = parts[:, :1] + torch.arange(times)
                none = parts == -1
                whole = (parts == wanted).all(1) & (parts[:, 0] % times == 0) & ~none.any(1)
                if size[axis] % times or not (whole | none.all(1)).all():
                    return None
                size[axis] //= times
                line = (parts[:, 0] / times).floor()
            else:
                return None
            lines[axis] = line.int().tolist()
        return replace(self, size=(size[0], size[1]), lines=(lines[0], lines[1]))

    def mask(self, grid: Pair) -> Tensor:
        own = self.at(grid)
        if own is None:
            return pooled(self.mask((len(self.lines[0]), len(self.lines[1]))), grid)
        assert own.size is not None
        rows, columns = (torch.tensor(line) for line in own.lines)
        inside = (rows >= 0)[:, None] & (columns >= 0)
        return pooled(own.picture, own.size)[rows.clamp(0)][:, columns.clamp(0)] & inside


def stand(
    node: Node, found: dict[Node, Arrangement], known: dict[Node, Standing], whole: Standing
) -> Standing:
    """Those of its operands are ``known``; ``whole`` is the picture."""
    grid, sources = found[node].grid, [arg for arg in node.all_input_nodes if arg in known]
    if is_move(node, found):
        return _moved(node, found, known)
    if is_pad(node, found):
        own_grid = found[sources[0]].grid
        before = known[sources[0]].on(own_grid)
        return Standing(padded(before.mask(own_grid), node), inside=before, inside_grid=own_grid)
    alike = [arg for arg in sources if found[arg].grid == grid] or sources[:1]
    own = [known[arg].on(grid) for arg in alike]
    distinct = [a for i, a in enumerate(own) if not any(_same(a, b) for b in own[:i])]
    if len(distinct) < 2:
        return distinct[0] if distinct else whole
    masks = torch.stack([standing.mask(grid) for standing in distinct])
    return Standing(masks.any(0))


def _fits(a: Pair, b: Pair) -> bool:
    ratios = [(x / y, y / x) for x, y in zip(a, b, strict=True)]
    return any(all(ratio[i].is_integer() for ratio in ratios) for i in (0, 1))


def is_pad(node: Node, found: dict[Node, Arrangement]) -> bool:
    """Does it pad rows and columns of pictures [N, C, H, W]?"""
    if node.target is not torch.ops.aten.pad.default or not found[node].is_image:
        return False
    pads: Any = node.args[1]
    return node.all_input_nodes[0] in found and len(node.meta["val"].shape) == 4 and any(pads[:4])


def padded(mask: Tensor, node: Node) -> Tensor:
    """What a pad adds is active where the border is, or the site that it shows."""
    how = node.args[2] if len(node.args) > 2 else "constant"
    mode = "replicate" if how == "constant" else how
    pads = [*node.args[1], 0, 0][:4]
    inner = mask.double()[None, None]
    cut = F.pad(inner, [min(pad, 0) for pad in pads])
    return F.pad(cut, [max(pad, 0) for pad in pads], mode)[0, 0] > 0


def _same(a: Standing, b: Standing) -> bool:
    return a.picture is b.picture and (a.size, a.lines) == (b.size, b.lines)


def _moved(node: Node, found: dict[Node, Arrangement], known: dict[Node, Standing]) -> Standing:
    grid = found[node].grid
    sources = [arg for arg in node.all_input_nodes if arg in known]
    grown = moved_masks(node, {arg: known[arg].mask(found[arg].grid) for arg in sources})
    own = [known[arg].at(found[arg].grid) for arg in sources]
    first = own[0]
    if any(o is None or o.picture is not first.picture or o.size != first.size for o in own):
        return Standing(grown)
    lines: list[list[int]] = []
    for axis in (0, 1):
        read = {}
        for arg, standing in zip(sources, own, strict=True):
            sizes = [1, 1]
            sizes[axis] = len(standing.lines[axis])
            numbers = torch.tensor(standing.lines[axis]).view(sizes).expand(found[arg].grid)
            read[arg] = numbers + 1
        # Where several parts are side by side, rows of one stand beside rows of another.
        numbers = _run(node, read)
        along = numbers.amax(1 - axis, keepdim=True)
        if not ((numbers == along) | (numbers == 0)).all():
            return Standing(grown)
        lines.append((along.flatten() - 1).tolist())
    identity = all(line == list(range(n)) for line, n in zip(lines, first.size, strict=True))
    if identity:
        return Standing(first.picture)
    assert tuple(map(len, lines)) == tuple(grid)
    return Standing(first.picture, first.size, (lines[0], lines[1]))


def moved_masks(node: Node, masks: dict[Node, Tensor]) -> Tensor:
    """The active sites of its operands, moved."""
    return _run(node, {arg: mask.int() for arg, mask in masks.items()}) > 0


def _run(node: Node, given: dict[Node, Tensor]) -> Tensor:
    """The operator on numbers [H, W] of its operands; 0 for those of others."""

    def number(arg: Node) -> Tensor:
        if arg in given:
            return given[arg][None, None]
        return torch.zeros(arg.meta["val"].shape[-2:], dtype=torch.int64)[None, None]

    args: Any = torch.fx.map_arg(node.args, number)
    target: Any = node.target
    result: Tensor = target(*args)[0, 0]
    return result
