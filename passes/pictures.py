"""Which inputs are pictures, and where their rows and columns lie: by their use in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from sparsify.codegen import norms, ops
from sparsify.codegen.errors import CaptureError
from torch.fx import Graph, GraphModule, Node

from .analyze import AnalyzeLayout, interpret
from .facts import facts
from .layout import Layout
from .rules.base import shape_of

aten = torch.ops.aten

_OF_PICTURES = {
    *(aten.conv2d, aten.conv_transpose2d, norms.group_norm, aten.im2col, aten.grid_sampler),
    *(aten.avg_pool2d, aten.max_pool2d, aten.upsample_nearest2d, aten.upsample_bilinear2d),
    *(aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa),
    *(aten.grid_sampler, aten.grid_sampler_2d),
}
_SHUFFLES = {ops.shuffle, ops.unshuffle, aten.pixel_shuffle, aten.pixel_unshuffle}
_OF_CHANNELS = {aten.linear, aten.layer_norm, aten.rms_norm}


@dataclass(frozen=True, eq=False)
class Reading:
    """One input taken for a picture of this layout, and no other."""

    index: int
    layout: Layout
    places: Mapping[Node, Layout]
    """The nodes of the graph that then lie on a grid."""
    is_used: bool
    """By an operator that only pictures come to, or up to an output on a grid."""

    def meets(self, other: Reading) -> bool:
        """Do the axes of both come together at some node?"""
        return any(other.places.get(node) == layout for node, layout in self.places.items())


Group = list[Reading]


def find_pictures(
    module: GraphModule,
    named: Mapping[int, Sequence[Layout]],
    others: Mapping[int, Sequence[int]],
) -> list[Group]:
    """The pictures among the inputs, by their index; in groups that do not meet, where it is not
    known which of them an edit changes.

    Those ``named`` are pictures, of the layout that fits their use best. Of the ``others``, given
    by their shape, those are that meet them or that are used as pictures, and what meets these:
    as [..., H, W], or as [..., H, W, C], of at most two channels a row and column, where that
    leaves none. Requires a canonical graph.
    """
    certain = [_best(module, index, layouts) for index, layouts in named.items()]
    first = _readings(module, {i: Layout.image(shape) for i, shape in others.items()})
    groups = _grouped(certain, first)
    found = [group for group in groups if any(r.is_used or r in certain for r in group)]
    if len(found) > 1:
        return found
    taken = {reading.index for group in found for reading in group}
    # Of so many channels that rows are few, chance finds a use sooner than a user has one.
    rest = {
        i: shape
        for i, shape in others.items()
        if i not in taken and min(shape[-3:-1]) >= max(2, shape[-1] / 2)
    }
    last = _readings(module, {i: Layout.channels_last(shape) for i, shape in rest.items()})
    if found:
        return [next(group for group in _grouped(found[0], last) if found[0][0] in group)]
    return [group for group in _grouped([], last) if any(r.is_used for r in group)] or groups


def with_items_apart(module: GraphModule, group: Group) -> Mapping[int, Layout]:
    """The layouts of pictures by index; with the items as a plain axis, where the model does not
    keep those of a batch apart: then fewer of its values would lie on a grid."""
    layouts = {reading.index: reading.layout for reading in group}
    together = {index: layout.without_items() for index, layout in layouts.items()}
    if len({layout.items for layout in layouts.values()}) > 1:
        return together
    for reading in (reading for reading in group if reading.layout.items > 1):
        own = read(module, reading.index, reading.layout, items_apart=True).places
        packed = [node for node, place in reading.places.items() if place.packable]
        if not all(_packs(own.get(node)) for node in packed):
            return together
    return layouts


def _packs(layout: Layout | None) -> bool:
    return layout is not None and layout.packable


def _readings(module: GraphModule, layouts: Mapping[int, Layout]) -> list[Reading]:
    return [read(module, i, layout) for i, layout in layouts.items() if layout.grid]


def read(module: GraphModule, index: int, layout: Layout, items_apart: bool = False) -> Reading:
    """What the graph does with input ``index`` if it is a picture, and with its items if they are
    to stay apart; the graph stays as it is."""
    marked = layout if items_apart else layout.without_items()
    graph, copies = Graph(), dict[Node, Node]()
    graph.graph_copy(module.graph, copies)
    count = len(graph.find_nodes(op="placeholder"))
    inputs = tuple(marked if i == index else None for i in range(count))
    graph.output(None)
    replaced = AnalyzeLayout(inputs).interpreted(graph, _interpret_if_it_can)
    places: dict[Node, Layout] = {}
    for node, copy in copies.items():
        while copy in replaced:
            copy = replaced[copy]
        if (place := facts(copy).layout) is not None and place.grid:
            places[node] = place
    is_used = any(map(_comes_to_an_operator_of_pictures, graph.nodes))
    if layout.is_image:
        is_used |= any(node in places for node in module.graph.output_node().all_input_nodes)
    else:
        is_used |= any(_packet(node) in _OF_CHANNELS for node in places)
    return Reading(index, layout, places, is_used)


def _interpret_if_it_can(node: Node) -> None:
    with suppress(CaptureError):  # what it refuses has no layout
        interpret(node)


def _comes_to_an_operator_of_pictures(node: Node) -> bool:
    packet = _packet(node)
    if packet not in _OF_PICTURES | _SHUFFLES:
        return False
    image = node.all_input_nodes[0]
    layout = facts(image).layout
    if not isinstance(layout, Layout) or not layout.is_image:
        return False
    if packet in _OF_PICTURES:
        return True
    # Channels may be cut into heads; only a picture is cut along both of its axes.
    sizes = zip(shape_of(image)[-2:], shape_of(node)[-2:], strict=True)
    return all(before != after for before, after in sizes)


def _packet(node: Node) -> object:
    return getattr(node.target, "overloadpacket", node.target)


def _best(module: GraphModule, index: int, layouts: Sequence[Layout]) -> Reading:
    """The first that is used, or else the first."""
    readings = [read(module, index, layout) for layout in layouts]
    return next((reading for reading in readings if reading.is_used), readings[0])


def _grouped(certain: Group, readings: Sequence[Reading]) -> list[Group]:
    """Those that meet are in one group, and so are those that are ``certain``."""
    groups = [certain] if certain else []
    for reading in readings:
        meeting = [group for group in groups if any(map(reading.meets, group))]
        joined = [*(member for group in meeting for member in group), reading]
        groups = [*(group for group in groups if group not in meeting), joined]
    return groups
