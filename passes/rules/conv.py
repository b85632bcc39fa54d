"""Convolutions: gather the taps through a kernel map, then one matrix product."""

from __future__ import annotations

import torch
from sparsify.codegen import ops, products
from sparsify.codegen.geometry import Geometry, TransposedWindow, Window, reads_own
from sparsify.codegen.prepack import prepack_conv, prepack_linear
from torch.fx import Node

from ..facts import facts
from ..layout import Layout, Unmatched
from ..packing.place import Place
from .base import (
    Rule,
    argument,
    image_layout,
    layout_of,
    pair,
    register,
    require_unedited,
    shape_of,
    source,
)
from .resample import zero_pad

aten = torch.ops.aten


@register(aten.conv2d, aten.conv_transpose2d)
class Conv(Rule):
    """conv2d and conv_transpose2d with any kernel, stride, padding, dilation and groups."""

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "weight", "bias")
        return image_layout(node).with_image(shape_of(node))

    def geometry(self, node: Node) -> Geometry:
        own = window(node, self.image(node))
        if self._transposed(node):
            return TransposedWindow(*own)
        left, _, top, _ = self._pads(node) or (0, 0, 0, 0)
        return own._replace(padding=(own.padding[0] + top, own.padding[1] + left))

    def emit(self, node: Node, place: Place) -> Node:
        image, geometry = self.image(node), self.geometry(node)
        bias = place.plain(argument(node, "bias"))
        weight = argument(node, "weight")
        if self._is_linear(node):
            format = place.costs.linear_format(node, weight)
            matrix = place.prepack(weight, prepack_linear, format=format)
            x = place.packed(image)
            return place.call(products.packed_linear, x, matrix, bias, format=format)
        form = (argument(node, "groups"), self._transposed(node))
        format = place.costs.conv_format(weight, shape_of(node)[1], *form)
        matrix = place.prepack(weight, prepack_conv, *form, format=format)
        x, halo, kernel_map = place.taps(image, geometry)
        return place.call(products.gather_conv, x, halo, kernel_map, matrix, bias, format=format)

    def emit_all(self, node: Node, place: Place) -> Node | None:
        if layout_of(node).grid is None:
            return None
        packed_input = facts(self.image(node)).mask is not None
        weight, is_transposed = source(node, 1), self._transposed(node)
        if not packed_input and (
            argument(node, "groups") != 1
            or not place.costs.gathers_all(node, weight, is_transposed)
        ):
            return None  # the library convolution is as fast or faster
        height, width = shape_of(node)[-2:]
        return place.call(ops.unpack, self.emit(node, place), height, width)

    def _transposed(self, node: Node) -> bool:
        return bool(node.target is aten.conv_transpose2d.input)

    def image(self, node: Node) -> Node:
        image = source(node) if self._pads(node) is None else source(source(node))
        if not self._transposed(node) and min(shape_of(image)[-2:]) < 2:
            raise Unmatched("the input has a single row or column")
        return image

    def _pads(self, node: Node) -> tuple[int, int, int, int] | None:
        """Of an uneven zero pad in front, which then needs no rows of its own."""
        return None if self._transposed(node) else zero_pad(source(node))

    def _is_linear(self, node: Node) -> bool:
        geometry = self.geometry(node)
        return (
            isinstance(geometry, Window) and reads_own(geometry) and argument(node, "groups") == 1
        )


def window(node: Node, image: Node) -> Window:
    """Of a convolution that reads ``image``, whose padding is its own."""
    parts = (image, node, source(node, 1))
    in_grid, out_grid, kernel = ((own[-2], own[-1]) for own in map(shape_of, parts))
    stride, dilation = (pair(argument(node, name)) for name in ("stride", "dilation"))
    padding = pair(argument(node, "padding"), (0, 0))
    return Window(in_grid, out_grid, kernel, stride, padding, dilation)
