"""Padding of convolutions, as numbers of their own wherever these can say it."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, pair, shape_of, source
from ..rules.resample import zero_pad
from .base import call

aten = torch.ops.aten


@rewrite(aten.conv2d.padding)
def string_padding(node: Node) -> Node:
    """conv2d(padding="same" | "valid") -> conv2d with numbers (and a pad if it is uneven)."""
    x, weight = source(node), source(node, 1)
    bias, stride = argument(node, "bias"), argument(node, "stride")
    dilation, groups = argument(node, "dilation"), argument(node, "groups")
    totals = [0, 0]
    if argument(node, "padding") == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, shape_of(weight)[-2:], strict=False)]
    low = [total // 2 for total in totals]
    if any(total % 2 for total in totals):
        top, left = low
        pads = [left, totals[1] - left, top, totals[0] - top]
        x, low = call(node, aten.pad.default, x, pads, "constant", 0.0), [0, 0]
    return call(node, aten.conv2d.default, x, weight, bias, stride, low, dilation, groups)


@rewrite(aten.conv2d.default)
def padded_convolution(node: Node) -> Node:
    """conv2d of a zero pad -> conv2d that pads by itself.

    An uneven pad stays, and the packing rule looks through it.
    """
    if (pads := zero_pad(source(node))) is None:
        raise Unmatched("its operand is no zero pad")
    left, right, top, bottom = pads
    if (left, top) != (right, bottom) or min(pads) < 0:
        raise Unmatched("the pad in front of it is uneven")
    own = pair(argument(node, "padding"), (0, 0))
    padding = [own[0] + top, own[1] + left]
    kernel = shape_of(source(node, 1))[-2:]
    if any(2 * p >= k for p, k in zip(padding, kernel, strict=True)):
        raise Unmatched("the library sums in another order for so wide a pad")
    _, weight, bias, stride, _, dilation, groups = (
        argument(node, name)
        for name in ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    )
    x = source(source(node))
    return call(node, aten.conv2d.default, x, weight, bias, stride, padding, dilation, groups)
