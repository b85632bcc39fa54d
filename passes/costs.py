"""What is faster on a machine: measured numbers, and what packing rules choose by them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sparsify.codegen import prepack
from torch import Tensor
from torch.fx import Node

from .facts import facts, is_constant, layout_of


@dataclass(frozen=True)
class Costs:
    """The defaults were measured on 2 cores with AVX-512."""

    formats: tuple[str, ...] = ("panels",)
    """Of constant weights, best first; where none has a kernel for a weight, it stays plain."""
    small_grid: int = 1024
    """Up to so many sites gather and product beat the library's convolution even for all of them:
    there the weights bound the time (1.0 to 1.4 times as fast at 256 sites, even at 1024)."""
    few_rows: int = 512
    """Up to so many rows a product on a custom format beats the library's linear layer, which
    orders its weight again each time: 1.6 to 2.3 times as fast for 13 to 36 rows, 1.25 for 128,
    even from 400 on."""
    typical_edit: float = 0.1
    """Of a grid that is packed, the share of the sites that counts."""

    def conv_format(self, weight: Node, width: int, groups: int) -> str:
        """Of a convolution with ``width`` output channels."""
        if is_constant(weight):
            value: Tensor = weight.meta["val"]
            for name in self.formats:
                if prepack.fits(name, value.device, value.dtype, width, groups):
                    return name
        return prepack.PLAIN

    def linear_format(self, node: Node, weight: Node) -> str:
        """Of ``node``, a linear layer or a 1x1 convolution."""
        value: Tensor = node.meta["val"]
        rows = value.shape[0] * prod(layout_of(node).grid or ())
        share = self.typical_edit if facts(node).mask is not None else 1
        is_short = rows * share <= self.few_rows
        return self.conv_format(weight, len(weight.meta["val"]), 1) if is_short else prepack.PLAIN

    def gathers_all(self, node: Node, weight: Node) -> bool:
        """Is the convolution ``node`` of a whole map faster as gather and product?"""
        grid, value = layout_of(node).grid, node.meta["val"]
        if grid is None or prod(grid) > self.small_grid or not is_constant(weight):
            return False
        return any(prepack.runs(name, value.device, value.dtype) for name in self.formats)
