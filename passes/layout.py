"""What the axes of a value mean.

A :class:`Layout` splits every dimension of a tensor into named factors: the items ``n`` of a batch,
``y`` and ``x`` of one grid, or plain. Reshapes regroup the factors, permutations reorder them. A
value whose ``y`` stands directly before its ``x`` can be packed: both, and ``n`` from wherever it
stands, become one axis of active sites. Text and image tokens joined along one axis are a single
factor ``joint``. What runs along the axis of sites besides the grid (frames before it, text around
it) is its :class:`Space`. A batch of one has no ``n``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Grid = tuple[int, int]


class Unmatched(Exception):
    """A rule does not apply; the text is the reason that the report shows."""


@dataclass(frozen=True)
class Space:
    """An axis of sites: ``before`` other entries, ``outer`` times the grid, ``after`` others.

    Packed, the axis keeps the other entries and the active sites of each repetition.
    """

    grid: Grid
    outer: int = 1
    before: int = 0
    after: int = 0

    @property
    def sites(self) -> int:
        """Entries that belong to the grid."""
        return self.outer * prod(self.grid)

    @property
    def size(self) -> int:
        return self.before + self.sites + self.after

    @property
    def is_grid(self) -> bool:
        """The sites of the grid and nothing else."""
        return self.size == prod(self.grid)


@dataclass(frozen=True)
class Axis:
    """A factor of a dimension; ``name`` is "n" (items of a batch), "y", "x", "joint" (both of a
    space) or "" (plain)."""

    size: int
    name: str = ""
    space: Space | None = None


Dim = tuple[Axis, ...]


def joint(space: Space) -> Dim:
    """A dimension that runs through ``space``; a grid alone keeps its factors."""
    if space.before or space.after:
        return (Axis(space.size, "joint", space),)
    height, width = space.grid
    return (*plain(space.outer), Axis(height, "y"), Axis(width, "x"))


def plain(size: int) -> Dim:
    """A dimension without a meaning to us."""
    return (Axis(size),) if size != 1 else ()


def batch(size: int) -> Dim:
    """The items of a batch."""
    return (Axis(size, "n"),) if size != 1 else ()


def _leading(sizes: Sequence[int]) -> list[Dim]:
    """Dimensions before those of the grid: the first is the batch."""
    return [batch(sizes[0]), *map(plain, sizes[1:])] if sizes else []


@dataclass(frozen=True)
class Layout:
    """The factors of every dimension, outermost first."""

    dims: tuple[Dim, ...]

    @staticmethod
    def of_plain(shape: Sequence[int]) -> Layout:
        return Layout(tuple(plain(size) for size in shape))

    @staticmethod
    def image(shape: Sequence[int]) -> Layout:
        """[N, ..., H, W]; a grid of one row or column is not worth packing."""
        return Layout((*_leading(shape[:-2]), (), ())).with_image(shape)

    def with_image(self, shape: Sequence[int]) -> Layout:
        """An image of ``shape`` [N, ..., H, W], of the same items as this one."""
        *rest, height, width = shape
        if height < 2 or width < 2:
            return Layout.of_plain(shape)
        spatial = ((Axis(height, "y"),), (Axis(width, "x"),))
        lead = [self.dims[0], *map(plain, rest[1:])] if rest else []
        return Layout((*lead, *spatial))

    @staticmethod
    def tokens(shape: Sequence[int], grid: Grid) -> Layout:
        """[N, L, ...] with L = H*W."""
        token_dim = (Axis(grid[0], "y"), Axis(grid[1], "x"))
        return Layout((batch(shape[0]), token_dim, *map(plain, shape[2:])))

    @staticmethod
    def lines(shape: Sequence[int]) -> Layout:
        """[N, ..., H, W], also of one row or column: its sites are then those of a line."""
        *rest, height, width = shape
        sites = (Axis(height, "y"), Axis(width, "x"))
        return Layout((*_leading(rest), sites)).reshape(shape)

    @staticmethod
    def channels_last(shape: Sequence[int]) -> Layout:
        """[N, ..., H, W, C], else as :meth:`lines`."""
        return Layout((*Layout.lines(shape[:-1]).dims, plain(shape[-1])))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(axis.size for axis in dim) for dim in self.dims)

    def find(self, name: str) -> int | None:
        """The dimension that holds the axis ``name``."""
        names = (name,) if name == "n" else (name, "joint")
        for index, dim in enumerate(self.dims):
            if any(axis.name in names for axis in dim):
                return index
        return None

    @property
    def items(self) -> int:
        """How many items its axis ``n`` has; 1 without one."""
        return prod(axis.size for dim in self.dims for axis in dim if axis.name == "n")

    def without_items(self) -> Layout:
        """The items as a plain axis, where the model does not keep them apart."""
        dims = (tuple(Axis(a.size) if a.name == "n" else a for a in dim) for dim in self.dims)
        return Layout(tuple(tuple(_merge_plain(list(dim))) for dim in dims))

    @property
    def grid(self) -> Grid | None:
        named = {axis.name: axis for dim in self.dims for axis in dim if axis.name}
        if "joint" in named:
            space = named["joint"].space
            assert space is not None
            return space.grid
        return (named["y"].size, named["x"].size) if "y" in named else None

    @property
    def space(self) -> Space:
        """How the axis of sites runs; only for packable layouts."""
        dim, grid = self.dims[self.site_dim], self.grid
        assert grid is not None
        if dim[-1].name == "joint":
            assert dim[-1].space is not None
            return dim[-1].space
        return Space(grid, prod(axis.size for axis in dim if not axis.name))

    @property
    def is_image(self) -> bool:
        """[..., H, W] with nothing else in these two dimensions."""
        if len(self.dims) < 3:
            return False
        return [[axis.name for axis in dim] for dim in self.dims[-2:]] == [["y"], ["x"]]

    @property
    def packable(self) -> bool:
        """``y`` directly before ``x``; plain factors share their dimension only before them, and
        items only before all of the joint axis."""
        y, x = self.find("y"), self.find("x")
        if y is None or x is None or x not in (y, y + 1):
            return False
        names = [axis.name for dim in self.dims[y : x + 1] for axis in dim]
        if "joint" in names:
            return names in (["joint"], ["n", "joint"])
        return names[-2:] == ["y", "x"] and not set(names[:-2]) - {"", "n"}

    @property
    def site_dim(self) -> int:
        """Where the axis of active sites stands in the packed value."""
        y = self.find("y")
        if y is None or not self.packable:
            raise Unmatched("the value has no axis of sites")
        return y

    @property
    def merged(self) -> bool:
        """``y`` and ``x`` share one dimension (tokens), so packing keeps the rank."""
        return self.find("y") == self.find("x")

    def packed_dim(self, dim: int) -> int:
        """Index of dimension ``dim`` of the full value in the packed one."""
        dim %= len(self.dims)
        return dim if self.merged or dim <= self.site_dim else dim - 1

    def packed_shape(self) -> list[int]:
        """Shape of the packed value, -1 for the number of active sites."""
        shape = [
            -1 if any(_is_site(axis) for axis in dim) else _without_items(dim) for dim in self.dims
        ]
        if not self.merged:
            del shape[self.site_dim + 1]
        return shape

    def is_plain(self, dim: int) -> bool:
        return not any(axis.name for axis in self.dims[dim])

    def replace(self, dim: int, size: int) -> Layout:
        """The layout with a plain dimension of another size."""
        dim %= len(self.dims)
        if not self.is_plain(dim):
            raise Unmatched(f"changes the spatial dimension {dim}")
        return Layout((*self.dims[:dim], plain(size), *self.dims[dim + 1 :]))

    def along(self, space: Space | None, size: int = 0) -> Layout:
        """The layout with another space along its axis of sites; None: plain, of ``size``."""
        at = self.site_dim
        if any(axis.name == "n" for axis in self.dims[at]):
            raise Unmatched("cuts or joins the items of the batch")
        dim = plain(size) if space is None else joint(space)
        return Layout((*self.dims[:at], dim, *self.dims[at + 1 :]))

    def on(self, grid: Grid) -> Layout:
        """The layout with rows and columns of another number."""
        size = {"y": grid[0], "x": grid[1]}
        return Layout(
            tuple(
                tuple(Axis(size.get(axis.name, axis.size), axis.name, axis.space) for axis in dim)
                for dim in self.dims
            )
        )

    def permute(self, order: Sequence[int]) -> Layout:
        return Layout(tuple(self.dims[dim] for dim in order))

    def reshape(self, shape: Sequence[int]) -> Layout:
        """Regroups the factors; splits plain ones where the new shape asks for it."""
        if 0 in shape:
            raise Unmatched("the value is empty")
        queue = _merge_plain([axis for dim in self.dims for axis in dim])
        dims: list[Dim] = []
        for size in shape:
            dim: list[Axis] = []
            left = size
            while left > 1:
                axis = queue.pop(0)
                if left % axis.size == 0:
                    dim.append(axis)
                    left //= axis.size
                elif axis.name or axis.size % left:
                    raise Unmatched(f"reshape {self.shape} -> {tuple(shape)} splits a spatial axis")
                else:
                    dim.append(Axis(left))
                    queue.insert(0, Axis(axis.size // left))
                    left = 1
            if queue and dim and (dim[-1].name, queue[0].name, queue[0].size) == ("y", "x", 1):
                dim.append(queue.pop(0))
            dims.append(tuple(_merge_plain(dim)))
        return Layout(tuple(dims))


def _is_site(axis: Axis) -> bool:
    return axis.name in ("y", "x", "joint")


def _without_items(dim: Dim) -> int:
    return prod(axis.size for axis in dim if axis.name != "n")


def _merge_plain(axes: list[Axis]) -> list[Axis]:
    merged: list[Axis] = []
    for axis in axes:
        if merged and not axis.name and not merged[-1].name:
            merged[-1] = Axis(merged[-1].size * axis.size)
        else:
            merged.append(axis)
    return merged


def broadcast(layouts: Sequence[Layout], shape: Sequence[int]) -> Layout:
    """Layout of a pointwise result of ``shape``; operands must agree on the spatial axes."""
    dims: list[Dim] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        options = {
            layout.dims[-back]
            for layout in layouts
            if len(layout.dims) >= back and layout.shape[-back] == size
        }
        spatial = {dim for dim in options if any(axis.name for axis in dim)}
        if len(spatial) > 1:
            raise Unmatched("operands disagree about the grid")
        dims.append(spatial.pop() if spatial else plain(size))
    names = [axis.name for dim in dims for axis in dim if axis.name]
    if names.count("n") > 1:
        raise Unmatched("compares the items of the batch")
    names = sorted(name for name in names if name != "n")
    if names not in ([], ["joint"], ["x", "y"]):
        raise Unmatched("operands disagree about the grid")
    return Layout(tuple(dims))
