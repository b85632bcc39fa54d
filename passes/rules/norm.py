"""Normalisation: over channels it is local, over space it is an affine map with statistics."""

from __future__ import annotations

import torch
from sparsify.codegen import norms
from torch.fx import Node

from ..layout import Layout, Unmatched
from ..packing.place import Place
from .base import (
    Rule,
    argument,
    is_edited,
    layout_of,
    register,
    require_items_first,
    require_unedited,
    source,
)

aten = torch.ops.aten


@register(aten.layer_norm, aten.rms_norm)
class ChannelNorm(Rule):
    """Layer and RMS norm over trailing plain axes."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "weight", "bias")
        layout = layout_of(source(node))
        axes = len(argument(node, "normalized_shape"))
        if not all(layout.is_plain(-dim) for dim in range(1, axes + 1)):
            raise Unmatched("normalises over the sites")
        return layout

    def emit(self, node: Node, place: Place) -> Node:
        x, shape, *rest = node.args
        assert isinstance(x, Node)
        target = norms.rms_norm if node.target is aten.rms_norm.default else node.target
        return place.call(target, place.packed(x), shape, *map(place.plain, rest))


@register(norms.group_norm)
class GroupNorm(Rule):
    """Group norm of [N, C, *]: ``norms.group_norm`` returns (result, mean, rstd)."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        if any(is_edited(parameter) for parameter in node.args[1:3]):
            raise Unmatched("its weight or bias depends on the edited input")
        layout = layout_of(source(node))
        if not layout.packable or layout.site_dim < 2:
            raise Unmatched("the input is not [N, C, ..., sites]")
        require_items_first(layout)
        return layout

    def is_global(self, node: Node) -> bool:
        return True

    def emit(self, node: Node, place: Place) -> Node:
        x = source(node)
        mean, rstd = place.statistics(node, x)
        weight, bias = map(place.plain, node.args[1:3])
        items = (place.item_of_site(layout_of(node)),) if place.items > 1 else ()
        return place.call(norms.group_affine, place.packed(x), mean, rstd, weight, bias, *items)
