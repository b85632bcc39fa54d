"""What is faster on a machine: measured numbers, and what packing rules choose by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from sparsify.codegen import prepack
from torch import Tensor
from torch.fx import Node

from .facts import facts, is_constant, layout_of


@dataclass(frozen=True)
class Costs:
    """The defaults were measured on 2 cores with AVX-512."""

    formats: tuple[str, ...] = (*prepack.SPARSE, "panels")
    """Of constant weights, best first; where none has a kernel for a weight, it stays plain."""
    any_rows: tuple[str, ...] = (
        prepack.SITES,
        prepack.LISTED,
        prepack.FINE,
        prepack.SEMI_STRUCTURED,
    )
    """Of these, the ones whose linear layers are faster than the library's, however many rows there
    are; the one for CUDA is taken for such, no GPU has timed it."""
    tile_columns: int = 64
    """A weight is stored in tiles if these are as wide, and if it keeps up to ``most_in_tiles``:
    each tile reads its rows one channel at a time. An estimate for CUDA; no GPU has timed it."""
    most_in_tiles: float = 0.5
    most_kept: float = 0.875
    """Up to such a share of N in M a weight that keeps so much is stored with lists of it: 1.9
    times as fast as panels for 2:4, 1.3 for 3:4, 1.1 for 7:8, even for 15:16."""
    most_sites: float | None = None
    """The same with sites along the lanes. None: 0.75 on CPUs with no more loads a cycle than
    multiplications (Intel's with AVX-512: 2:4 is 1.8 times as fast as panels, 3:4 1.2 times, with
    outputs along the lanes 1.45 and 1.1), else never (with AVX2 1.75 and 1.95 for 2:4)."""
    most_fine: float = 0.5
    """The same where each output keeps inputs of its own (with AVX2, 320 channels): 1.5 times as
    fast as panels for 2:4, 2.5 for 1:4, even for 3:4."""
    few_fine_inputs: int = 128
    """With fewer, of all taps, such a weight is stored like others: 64 are 1.1 times as fast with
    lists for 1024 rows, even for 256, 0.9 times for 64."""
    few_fine_channels: int = 256
    """``few_channels`` for such weights: with 128 and 2:4 a product is 0.9 to 1.1 times as fast as
    the library's convolution of a whole map, with 320 from 1.3 to 1.7 times."""
    few_sites_channels: int = 128
    """The same with sites along the lanes: from 1.1 to 1.3 times as fast with 128 channels and 256
    or more sites, from 1.3 to 1.6 with 256, 0.7 to 0.9 with 64."""
    few_channels: int = 64
    """With fewer, the library's convolution of a whole map beats a product with lists: 1.4
    times as fast for 16 channels and 2:4, even for 32; with 64 a product is 1.1 to 1.5 times as
    fast as it, 1.7 with 128, 1.9 from 256 on."""
    few_macs: int = 1 << 23
    """So does one with fewer: what comes before a product takes longer then (1.7 times as fast for
    2.4 million; for 9.4 million a product is 1.1 to 1.3 times as fast)."""
    few_linear_macs: int = 1 << 20
    """A linear layer with fewer is computed with all of its weights: 0.8 to 0.9 times as fast with
    a list for a quarter of it, as fast as without for one million."""
    small_grid: int = 1024
    """Up to so many sites gather and product beat the library's convolution even for all of them:
    there the weights bound the time (1.0 to 1.4 times as fast at 256 sites, even at 1024)."""
    few_rows: int = 512
    """Up to so many rows a product on a custom format beats the library's linear layer, which
    orders its weight again each time: 1.6 to 2.3 times as fast for 13 to 36 rows, 1.25 for 128,
    even from 400 on."""
    typical_edit: float = 0.1
    """Of a grid that is packed, the share of the sites that counts."""

    def conv_format(
        self, weight: Node, width: int, groups: int = 1, transposed: bool = False
    ) -> str:
        """Of a convolution with ``width`` output channels."""
        return self._format(weight, width, groups, {} if transposed else self._sparse(weight))

    def _format(self, weight: Node, width: int, groups: int, sparse: dict[str, str | None]) -> str:
        """The best of ``formats``, those in ``prepack.SPARSE`` by the names in ``sparse``."""
        names = [sparse.get(name) if name in prepack.SPARSE else name for name in self.formats]
        return _first(names, weight, width, groups) or prepack.PLAIN

    def list_format(self, weight: Node, groups: int = 1) -> str | None:
        """The format of a weight [O, I, ...] if a product reads with it what it keeps alone, and is
        faster than the library's, however many rows there are."""
        sparse = self._sparse(weight)
        names = [sparse.get(name) for name in self.formats if name in self.any_rows]
        return _first(names, weight, len(weight.meta["val"]), groups)

    def whole_format(self, node: Node, weight: Node, groups: int = 1) -> str | None:
        """The same, if the convolution ``node`` of a whole map is faster as such a product; on CUDA
        the library's, which reads no kernel map, is taken for faster."""
        value: Tensor = weight.meta["val"]
        _, channels, *taps = value.shape
        work: int = prod((*node.meta["val"].shape, channels, *taps))
        format = self.list_format(weight, groups)
        if value.is_cuda or format is None or work < self.few_macs:
            return None
        own = self._sparse(weight)
        fewest = {
            own.get(prepack.FINE): self.few_fine_channels,
            own.get(prepack.SITES): self.few_sites_channels,
        }
        return None if channels < fewest.get(format, self.few_channels) else format

    def _sparse(self, weight: Node) -> dict[str, str | None]:
        """Of a weight [O, I, ...] that keeps N of M inputs: the formats that store no more, each by
        its name in ``formats``."""
        kept, (_, channels, *taps) = facts(weight).kept, weight.meta["val"].shape
        if kept is None:
            return {}
        is_deep = prod((channels, *taps)) >= self.few_fine_inputs
        is_wide = prepack.tile_columns(kept.v) >= self.tile_columns
        most = {
            prepack.SITES: self._most_sites() if weight.meta["val"].is_cpu else 0.0,
            prepack.LISTED: self.most_kept,
            prepack.FINE: self.most_fine if is_deep else 0.0,
            prepack.TILES: self.most_in_tiles if is_wide else 0.0,
        }
        named = {name: make(kept, channels) for name, make in prepack.SPARSE.items()}
        return {name: own for name, own in named.items() if kept.share <= most.get(name, 1.0)}

    def _most_sites(self) -> float:
        if self.most_sites is not None:
            return self.most_sites
        return 0.75 if prepack.loads_bound() else 0.0

    def linear_format(self, node: Node, weight: Node) -> str:
        """Of ``node``, a linear layer or a 1x1 convolution."""
        value: Tensor = node.meta["val"]
        rows: float = value.shape[0] * prod(layout_of(node).grid or ())
        rows *= self.typical_edit if facts(node).mask is not None else 1
        if listed := self.linear_list_format(weight, rows):
            return listed
        if rows > self.few_rows:
            return prepack.PLAIN
        sparse = {} if self._is_small(weight, rows) else self._sparse(weight)
        return self._format(weight, len(weight.meta["val"]), 1, sparse)

    def linear_list_format(self, weight: Node, rows: float) -> str | None:
        """:meth:`list_format` of a linear layer on so many rows, if it is not too small."""
        return None if self._is_small(weight, rows) else self.list_format(weight)

    def _is_small(self, weight: Node, rows: float) -> bool:
        work: float = rows * weight.meta["val"].numel()
        return work < self.few_linear_macs

    def gathers_all(self, node: Node, weight: Node, transposed: bool = False) -> bool:
        """Is the convolution ``node`` of a whole map faster as gather and product?"""
        grid, value = layout_of(node).grid, node.meta["val"]
        if not transposed and self.whole_format(node, weight):
            return True
        if grid is None or prod(grid) > self.small_grid or not is_constant(weight):
            return False
        names = (name for name in self.formats if name not in prepack.SPARSE)
        return any(prepack.runs(name, value.device, value.dtype) for name in names)


def _first(names: Iterable[str | None], weight: Node, width: int, groups: int) -> str | None:
    """The first of these formats in which the weight can be stored, and computed with here."""
    if not is_constant(weight):
        return None
    value: Tensor = weight.meta["val"]

    def fits(name: str) -> bool:
        return prepack.fits(name, value.device, value.dtype, width, groups)

    return next((name for name in names if name and fits(name)), None)
