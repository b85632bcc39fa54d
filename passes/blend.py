"""Edited values inside a mask, recorded ones outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from sparsify.codegen import ops
from torch import Tensor
from torch.fx import Node

from .facts import facts
from .layout import Layout
from .packing.items import apart, joined


def mask_name(mask: Node) -> str:
    """The name that a mask has between the graphs and in tables."""
    return f"mask.{mask.name}"


@dataclass(frozen=True)
class Spot:
    """How a value lies on its grid, and the name of the mask that says where it is edited; empty
    if it is computed whole."""

    layout: Layout
    mask: str

    @staticmethod
    def of(node: Node) -> Spot | None:
        """None for a node without a grid."""
        known = facts(node)
        if known.layout is None or known.layout.grid is None:
            return None
        return Spot(known.layout, mask_name(known.mask) if known.mask else "")


def blend(layout: Layout, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` at the active positions of the axis of sites, and beside its grid."""
    space, dim = layout.space, layout.site_dim
    active = torch.ones(layout.items, space.size, dtype=torch.bool, device=mask.device)
    inside = mask.reshape(-1, prod(space.grid)).repeat(1, space.outer)
    active[:, space.before : space.before + space.sites] = inside
    if layout.items > 1:
        sizes, (factors, order, whole) = joined(layout).shape, apart(layout)
        along = active.view([-1 if at == dim else 1 for at in range(len(sizes))]).expand(sizes)
        return torch.where(ops.regroup(along, factors, order, whole), new, old)
    shape = [1] * new.dim()
    last = dim if layout.merged else dim + 1
    shape[dim : last + 1] = new.shape[dim : last + 1]
    return torch.where(active.reshape(shape), new, old)


def by_site(layout: Layout, values: Tensor) -> Tensor:
    """[N, C, H, W]: all that stands at a site of an item, in one axis."""
    dim, grid = layout.site_dim, layout.space.grid
    if layout.merged:
        values, dim = values.unflatten(dim, (-1, *grid)), dim + 1
    values = values.movedim((dim, dim + 1), (-2, -1))
    return values.reshape(values.shape[0], -1, *grid)


def sites(layout: Layout, marks: Tensor) -> Tensor:
    """bool [N, H, W]: the sites of each item at which any of ``marks`` is set."""
    return by_site(layout, marks).any(1)


def blended(
    spots: Sequence[Spot | None],
    new: Sequence[Any],
    old: Sequence[Any],
    masks: Mapping[str, Tensor],
) -> list[Any]:
    """Values at ``spots``: those on a grid blended by their ``masks``, bool [H, W] or [N, H, W] by
    name, all others the new ones."""
    values = list(new)
    for index, spot in enumerate(spots):
        if spot is not None and spot.mask:
            inside = masks[spot.mask].to(new[index].device)
            values[index] = blend(spot.layout, inside, new[index], old[index])
    return values
