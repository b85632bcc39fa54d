"""The items of a batch on the axis of sites, where packed values have them.

A value is *joined* when its axis of sites runs over those of all items, one item after the other:
the entry of item ``n`` at position ``p`` of ``size`` is number ``n * size + p``. In most layouts
the items stand before the sites, and this is a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from ..layout import Axis, Layout, Unmatched


class Regrouping(NamedTuple):
    """What :func:`sparsify.codegen.ops.regroup` does: a tensor is split into ``factors``, these
    are put in another ``order``, and then into a ``shape``."""

    factors: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Factor:
    dim: int
    name: str
    size: int


def joined(
    layout: Layout, shape: Sequence[int] | None = None, rows: bool = False, beside: bool = False
) -> Regrouping:
    """How a tensor of ``shape`` (None: the value itself) that broadcasts against a value of
    ``layout`` is joined; as ``rows``, with the axis of sites before that of the channels.

    Entries ``beside`` the grid follow each other, each of all items."""
    factors = _factors(layout, layout.shape if shape is None else shape)
    order = _order(layout, factors, rows, beside)
    dims = (_Factor(dim, "", 1) for dim in range(len(layout.dims)))
    groups = dict.fromkeys(sorted(_group(layout, factor, rows) for factor in dims), 1)
    for factor in factors:
        groups[_group(layout, factor, rows)] *= factor.size
    return Regrouping(_sizes(factors), order, tuple(groups.values()))


def apart(
    layout: Layout, shape: Sequence[int] | None = None, rows: bool = False, beside: bool = False
) -> Regrouping:
    """The way back from :func:`joined`."""
    shape = layout.shape if shape is None else tuple(shape)
    factors = _factors(layout, shape)
    order = _order(layout, factors, rows, beside)
    sizes = tuple(factors[index].size for index in order)
    return Regrouping(sizes, tuple(map(order.index, range(len(order)))), shape)


def by_item(layout: Layout, shape: Sequence[int]) -> Regrouping:
    """How a tensor of ``shape`` whose axes, but the last two, broadcast against a value of
    ``layout`` gets an axis of its items, or of size one, before all others."""
    factors = _factors(layout, shape)
    (first,) = (index for index, factor in enumerate(factors) if factor.name == "n")
    order = (first, *(index for index in range(len(factors)) if index != first))
    others = [
        prod(factor.size for factor in factors if factor.dim == dim and factor.name != "n")
        for dim in range(len(layout.dims))
    ]
    return Regrouping(_sizes(factors), order, (factors[first].size, *others))


def differs(layout: Layout, shape: Sequence[int]) -> bool:
    """Is a tensor of ``shape`` that broadcasts against a value another one for each item?"""
    dim, lead = layout.find("n"), len(layout.dims) - len(shape)
    return dim is not None and dim >= lead and shape[dim - lead] > 1


def leading(layout: Layout) -> int:
    """How many items the first axis begins with; 1 if it does not."""
    return prod(axis.size for axis in layout.dims[0][:1] if axis.name == "n")


def _factors(layout: Layout, shape: Sequence[int]) -> list[_Factor]:
    factors: list[_Factor] = []
    lead = [1] * (len(layout.dims) - len(shape))
    for at, (dim, size) in enumerate(zip(layout.dims, [*lead, *shape], strict=True)):
        if size == prod(axis.size for axis in dim):
            factors += [_Factor(at, axis.name, axis.size) for axis in dim or (Axis(1),)]
            continue
        items = [_Factor(at, "n", 1) for axis in dim if axis.name == "n"]
        if items and size != 1:
            raise Unmatched("an operand has other items")
        factors += [*items, _Factor(at, "", size)]
    return factors


def _group(layout: Layout, factor: _Factor, rows: bool) -> int:
    """Which dimension of the joined value a factor belongs to, by a number that says its place."""
    site = layout.site_dim
    if factor.name == "n" or factor.dim == site + (not layout.merged):
        return site
    return len(layout.dims) if rows and factor.dim == 1 else factor.dim


def _order(layout: Layout, factors: list[_Factor], rows: bool, beside: bool) -> tuple[int, ...]:
    """On the axis of sites the items come first, or ``beside`` the grid last."""

    def place(index: int) -> tuple[int, bool, int]:
        factor = factors[index]
        return _group(layout, factor, rows), (factor.name == "n") == beside, index

    return tuple(sorted(range(len(factors)), key=place))


def _sizes(factors: list[_Factor]) -> tuple[int, ...]:
    return tuple(factor.size for factor in factors)
