"""Views, permutations, concatenations and slices: packed values follow their layout."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import norms, ops
from sparsify.codegen.geometry import Geometry, Pad, Pair, Window
from torch.fx import Node

from ..facts import facts
from ..layout import Layout, Space, Unmatched, plain
from ..packing.items import apart
from ..packing.place import Place
from .base import Rule, argument, is_edited, layout_of, permutation, register, shape_of, source

aten = torch.ops.aten


@register(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten)
class Reshape(Rule):
    """Any regrouping of axes that keeps ``y`` and ``x`` whole."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        return layout_of(source(node)).reshape(shape_of(node))

    def emit(self, node: Node, place: Place) -> Node:
        x = place.beside(source(node), node)
        return place.call(aten.reshape.default, x, layout_of(node).packed_shape())


@register(aten.unsqueeze, aten.squeeze)
class Squeeze(Reshape):
    """Adds or drops an axis of size one, wherever it stands."""


@register(aten.permute, aten.transpose, aten.t)
class Permute(Rule):
    """Reorders the axes; ``y`` has to stay directly before ``x`` to remain packed."""

    cheap = True

    def _order(self, node: Node) -> list[int]:
        order = permutation(node)
        assert order is not None
        return order

    def layout(self, node: Node) -> Layout:
        return layout_of(source(node)).permute(self._order(node))

    def emit(self, node: Node, place: Place) -> Node:
        before = layout_of(source(node))
        skip = None if before.merged else before.find("x")
        order = [before.packed_dim(dim) for dim in self._order(node) if dim != skip]
        return place.call(aten.permute.default, place.packed(source(node)), order)


@register(aten.expand)
class Expand(Rule):
    """Broadcasts plain axes of size one."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        before, shape = layout_of(source(node)), shape_of(node)
        lead = len(shape) - len(before.dims)
        dims = [*(() for _ in range(lead)), *before.dims]
        pairs = zip(dims, shape, (*(1,) * lead, *before.shape), strict=True)
        return Layout(tuple(dim if old == size else plain(size) for dim, size, old in pairs))

    def emit(self, node: Node, place: Place) -> Node:
        shape = layout_of(node).packed_shape()
        return place.call(aten.expand.default, place.packed(source(node)), shape)


@register(aten.cat)
class Concatenate(Rule):
    """Joins along a plain axis, every edited part on one grid; text with image tokens; or
    pictures along their rows or columns."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        dim = argument(node, "dim", 0)
        if along := self._along_sites(node):
            return self._joint(node, along)
        parts: Any = node.args[0]
        wanted = {layout_of(part).replace(dim, 1) for part in parts if is_edited(part)}
        if len(wanted) != 1:
            raise Unmatched("joins values of different grids")
        return wanted.pop().replace(dim, shape_of(node)[dim])

    def _along_sites(self, node: Node) -> list[int]:
        """Which parts hold sites, if the parts are joined along their axis."""
        parts: Any = node.args[0]
        dim = argument(node, "dim", 0)
        return [
            index
            for index, part in enumerate(parts)
            if is_edited(part) and not layout_of(part).is_plain(dim)
        ]

    def moves(self, node: Node) -> tuple[tuple[Node, Geometry], ...]:
        return tuple((part, at) for part, at in self._pictures(node) if is_edited(part))

    def _pictures(self, node: Node) -> list[tuple[Node, Geometry]]:
        """The parts of a picture [N, C, H, W] that are joined along its rows or columns."""
        parts: Any = node.args[0]
        dim, before = argument(node, "dim", 0) % len(shape_of(node)) - 2, 0
        edited = [layout_of(part) for part in parts if is_edited(part)]
        if dim < 0 or not all(own.is_image and len(own.dims) == 4 for own in edited):
            return []
        found: list[tuple[Node, Geometry]] = []
        for part in parts:
            grid, whole = ((shape_of(x)[2], shape_of(x)[3]) for x in (part, node))
            found.append((part, Pad(grid, whole, (before, 0) if dim == 0 else (0, before))))
            before += grid[dim]
        return found

    def _joint(self, node: Node, along: list[int]) -> Layout:
        parts: Any = node.args[0]
        if self._pictures(node):
            return layout_of(parts[along[0]]).on((shape_of(node)[2], shape_of(node)[3]))
        first, last, dim = along[0], along[-1], argument(node, "dim", 0) % len(shape_of(node))
        layouts = [layout_of(parts[index]) for index in along]
        if not all(layout.packable and layout.merged for layout in layouts):
            raise Unmatched("joins along a spatial axis what is no picture")
        if any(dim == layout.find("n") for layout in layouts):
            raise Unmatched("joins items of the batch")
        spaces = [layout.space for layout in layouts]
        between = [space.before for space in spaces[1:]] + [space.after for space in spaces[:-1]]
        if len(along) <= last - first or any(between) or len({s.grid for s in spaces}) > 1:
            raise Unmatched("joins two grids along one axis, or others between them")
        sizes = [shape_of(part)[dim] for part in parts]
        before, after = sum(sizes[:first]), sum(sizes[last + 1 :])
        outer = sum(space.outer for space in spaces)
        ends = before + spaces[0].before, after + spaces[-1].after
        return layouts[0].along(Space(spaces[0].grid, outer, *ends))

    def emit(self, node: Node, place: Place) -> Node:
        parts: Any = node.args[0]
        dim, layout = argument(node, "dim", 0), layout_of(node)
        if pictures := self._pictures(node):
            taps = [place.taps(*picture) for picture in pictures]
            return place.call(ops.gather_joined, *map(list, zip(*taps, strict=True)))
        if along := self._along_sites(node):
            pieces = [
                place.beside(part, node) if index in along else place.entries(part, layout)
                for index, part in enumerate(parts)
            ]
            return place.call(aten.cat.default, pieces, layout.packed_dim(dim))
        packed = [place.aligned(part, layout.replace(dim, shape_of(part)[dim])) for part in parts]
        if layout.is_image and dim % len(layout.dims) == 1:
            return place.call(ops.concat_channels, packed)
        return place.call(aten.cat.default, packed, layout.packed_dim(dim))


@register(aten.slice)
class Slice(Rule):
    """A part of a plain axis, or of a picture; of an axis that joins text and images, whole
    images or none."""

    cheap = True

    def _range(self, node: Node) -> tuple[int, int, int, int]:
        """dim, start, stop and step, all counted from the front."""
        dim = argument(node, "dim") % len(shape_of(node))
        size, step = shape_of(source(node))[dim], argument(node, "step")
        given = slice(argument(node, "start"), argument(node, "end"), step)
        start, stop, _ = given.indices(size)
        return dim, start, stop, step

    def layout(self, node: Node) -> Layout:
        layout, (dim, start, stop, step) = layout_of(source(node)), self._range(node)
        if layout.is_plain(dim):
            return layout.replace(dim, shape_of(node)[dim])
        if shape_of(node) == shape_of(source(node)):
            return layout
        if dim == layout.find("n"):
            raise Unmatched("takes some items of the batch")
        if (geometry := self.geometry(node)) is not None:
            return layout.on(geometry.out_grid)
        if not layout.packable or not layout.merged or step != 1:
            raise Unmatched("takes a part of the grid")
        space = layout.space
        end = space.before + space.sites
        if stop <= space.before or start >= end:
            return layout.along(None, stop - start)
        first, last = self._images(space, start, stop)
        ends = max(space.before - start, 0), max(stop - end, 0)
        return layout.along(Space(space.grid, last - first, *ends))

    def _images(self, space: Space, start: int, stop: int) -> tuple[int, int]:
        """Which of the ``outer`` images lie between ``start`` and ``stop``."""
        sites = space.sites // space.outer
        first, left = divmod(max(start - space.before, 0), sites)
        last, right = divmod(min(stop - space.before, space.sites), sites)
        if left or right:
            raise Unmatched("takes a part of the grid")
        return first, last

    def geometry(self, node: Node) -> Window | None:
        """Some rows or columns of an image, or every so many of them."""
        layout, (dim, start, _, step) = layout_of(source(node)), self._range(node)
        before, after = shape_of(source(node)), shape_of(node)
        if layout.is_plain(dim) or before == after or not layout.is_image or len(before) != 4:
            return None
        stride, offset = ((step, 1), (-start, 0)) if dim == 2 else ((1, step), (0, -start))
        return Window((before[2], before[3]), (after[2], after[3]), (1, 1), stride, offset)

    def moves(self, node: Node) -> tuple[tuple[Node, Geometry], ...]:
        """What a step covers from the first few to the end is a coarser picture of it all."""
        geometry, (dim, start, _, step) = self.geometry(node), self._range(node)
        size = shape_of(source(node))[dim]
        if geometry is None or (
            0 <= start < step and shape_of(node)[dim] == -((start - size) // step)
        ):
            return ()
        return ((source(node), geometry),)

    def emit(self, node: Node, place: Place) -> Node:
        layout, (dim, start, stop, step) = layout_of(source(node)), self._range(node)
        if (geometry := self.geometry(node)) is not None:
            if place.is_baseline:
                return place.moved(geometry).packed(source(node))
            return place.call(ops.gather_one, *place.taps(source(node), geometry))
        if layout.is_plain(dim):
            x, at = place.packed(source(node)), layout.packed_dim(dim)
            return place.call(aten.slice.Tensor, x, at, start, stop, step)
        if shape_of(node) == shape_of(source(node)):
            return place.packed(source(node))
        return self._cut(node, place)

    def emit_all(self, node: Node, place: Place) -> Node | None:
        """The text beside the sites is in the packed value: no need to write the others out."""
        layout = layout_of(source(node))
        if facts(source(node)).mask is None or layout_of(node).grid is not None:
            return None
        return None if layout.is_plain(self._range(node)[0]) else self._cut(node, place)

    def _cut(self, node: Node, place: Place) -> Node:
        """Ends that lie behind the sites are counted from the back: sites are few when packed."""
        layout, (dim, start, stop, _) = layout_of(source(node)), self._range(node)
        space, items = layout.space, place.items
        last = space.before + space.sites
        if layout_of(node).grid and layout_of(node).space.outer < space.outer:
            around = (space.outer, space.before * items, space.after * items)
            images = self._images(space, start, stop)
            ends = min(start, space.before) * items, max(stop - last, 0) * items
            x = place.beside(source(node), node)
            return place.call(ops.cut_images, x, dim, around, images, ends)
        start = start if start <= space.before else start - space.size
        end = stop if stop < last else stop - space.size
        x = place.beside(source(node), source(node))
        cut = place.call(aten.slice.Tensor, x, dim, start * items, end * items or None)
        if items == 1 or layout_of(node).grid:
            return cut
        return place.call(ops.regroup, cut, *apart(layout, shape_of(node), beside=True))


@register(aten.select)
class Select(Rule):
    """One entry of a plain axis."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        layout, dim = layout_of(source(node)), argument(node, "dim") % len(shape_of(source(node)))
        if not layout.is_plain(dim):
            raise Unmatched("takes a part of the grid")
        return Layout((*layout.dims[:dim], *layout.dims[dim + 1 :]))

    def emit(self, node: Node, place: Place) -> Node:
        dim = layout_of(source(node)).packed_dim(argument(node, "dim"))
        return place.call(node.target, place.packed(source(node)), dim, argument(node, "index"))


class Reorder(Rule):
    """Plain axes, or the rows and columns of a picture, in another order."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        layout, dims = layout_of(source(node)), argument(node, "dims")
        if not dims or not (self._is_beside(node) or self.geometry(node)):
            raise Unmatched("mirrors or turns what is no picture")
        return layout

    def _is_beside(self, node: Node) -> bool:
        return all(map(layout_of(source(node)).is_plain, argument(node, "dims")))

    def geometry(self, node: Node) -> Pad | None:
        layout, shape, dims = layout_of(source(node)), shape_of(node), argument(node, "dims")
        axes = [dim % len(shape) - 2 for dim in dims]
        if self._is_beside(node) or not layout.is_image or len(shape) != 4 or min(axes) < 0:
            return None
        return self._order(node, (shape[2], shape[3]), axes)

    def _order(self, node: Node, grid: Pair, axes: list[int]) -> Pad:
        raise NotImplementedError

    def moves(self, node: Node) -> tuple[tuple[Node, Geometry], ...]:
        geometry = self.geometry(node)
        return ((source(node), geometry),) if geometry else ()

    def emit(self, node: Node, place: Place) -> Node:
        if (geometry := self.geometry(node)) is not None:
            if place.is_baseline:
                return place.moved(geometry).packed(source(node))
            return place.call(ops.gather_one, *place.taps(source(node), geometry))
        dims = [layout_of(source(node)).packed_dim(dim) for dim in argument(node, "dims")]
        shifts = node.args[1:-1]
        return place.call(node.target, place.packed(source(node)), *shifts, dims)


@register(aten.roll)
class Roll(Reorder):
    """The last ones first."""

    def _order(self, node: Node, grid: Pair, axes: list[int]) -> Pad:
        by = [0, 0]
        for axis, shift in zip(axes, argument(node, "shifts"), strict=True):
            by[axis] += shift
        return Pad(grid, grid, (by[0] % grid[0], by[1] % grid[1]), "circular")


@register(aten.flip)
class Flip(Reorder):
    """The last one first."""

    def _order(self, node: Node, grid: Pair, axes: list[int]) -> Pad:
        step = (-1 if 0 in axes else 1, -1 if 1 in axes else 1)
        before = (1 - grid[0] if 0 in axes else 0, 1 - grid[1] if 1 in axes else 0)
        return Pad(grid, grid, before, step=step)


@register(ops.as_complex)
class AsComplex(Rule):
    """[..., 2] -> complex [...]."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        layout = layout_of(source(node))
        if not layout.is_plain(-1):
            raise Unmatched("the last axis is not plain")
        return Layout(layout.dims[:-1])

    def emit(self, node: Node, place: Place) -> Node:
        return place.call(node.target, place.packed(source(node)))


@register(aten.view_as_real)
class AsReal(AsComplex):
    """Complex [...] -> [..., 2]."""

    def layout(self, node: Node) -> Layout:
        return Layout((*layout_of(source(node)).dims, plain(2)))


@register(operator.getitem)
class GetItem(Rule):
    """The first result of a norm."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        layout = layout_of(source(node))
        if source(node).target is not norms.group_norm:
            raise Unmatched("an operator with several results")
        if node.args[1] != 0:
            raise Unmatched("uses the statistics of a norm")
        return layout

    def emit(self, node: Node, place: Place) -> Node:
        return place.packed(source(node))
