"""How the weight of a product is stored: each format with the kernel that reads it, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ..errors import OperandError
from ..nm.pattern import NM
from . import cpp, fine, library, listed, semi_structured, tiles
from .reference import reference

PLAIN = "plain"
"""As torch's own operators read it: the only format in exports."""
LISTED = "16:n:m"
"""Of formats such as 16:2:4: of weights that :func:`sparsify::nm_masked` makes."""
FINE = "1:n:m"
"""Of formats such as 1:2:4: of those where each output keeps inputs of its own."""
SITES = "sites 16:n:m"
"""Of formats such as "sites 16:2:4": of the same weights as LISTED, for sites along the lanes."""
TILES = "tiles v:n:m"
"""Of formats such as "tiles 64:2:4": of those that more outputs share, for the kernel on CUDA."""
SEMI_STRUCTURED = semi_structured.NAME
Parts = Callable[[Tensor, int, torch.dtype], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Format:
    """How a matrix [groups, depth, width] is stored, and the product that reads it."""

    pack: Callable[[Tensor], Tensor]
    width: Callable[[Tensor, int], int]
    """Columns of all groups, from what is stored and the depth of a group times their number."""
    product: Callable[[Tensor, Tensor | None, Tensor, Tensor | None], Tensor]
    """``rows, kernel_map, weight, bias``; without a map each row is a site of one tap."""
    runs: Callable[[torch.device, torch.dtype], bool]
    """Is there a kernel for this device and dtype here?"""
    multiple: int
    """What the width of a group is a multiple of."""
    groups: bool
    """May there be several?"""
    parts: Parts | None = None
    """What ``sparsify::gather_conv`` reads on CUDA, of what is stored for so many inputs, and a
    dtype: [groups, depth, width], and lists if it has some. None: it does not read the format."""


def _plain(rows: Tensor, kernel_map: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert kernel_map is not None
    product = reference if rows.is_cuda else library.product
    return product(rows, kernel_map, weight, bias)


FORMATS: dict[str, Format] = {
    PLAIN: Format(
        pack=lambda matrix: matrix,
        width=lambda weight, depth: weight.shape[0] * weight.shape[2],
        product=_plain,
        runs=lambda device, dtype: True,
        multiple=1,
        groups=True,
        parts=lambda weight, depth, dtype: (weight, None),
    ),
    "panels": Format(
        pack=lambda matrix: cpp.panels(matrix[0]),
        width=lambda weight, depth: len(weight) // depth,
        product=cpp.launch,
        runs=cpp.runs,
        multiple=cpp.COLUMNS,
        groups=False,
    ),
    SEMI_STRUCTURED: Format(
        pack=lambda matrix: semi_structured.pack(matrix[0]),
        width=lambda weight, depth: len(weight),
        product=semi_structured.product,
        runs=semi_structured.runs,
        multiple=semi_structured.COLUMNS,
        groups=False,
    ),
}


@cache
def _listed(n: int, m: int) -> Format:
    """Of weights of which every 16 columns keep ``n`` of each ``m`` inputs of a tap."""
    return Format(
        pack=lambda matrix: listed.pack(matrix[0], n, m),
        width=partial(listed.width, n=n, m=m),
        product=partial(listed.launch, n=n, m=m),
        runs=cpp.runs,
        multiple=cpp.COLUMNS,
        groups=False,
    )


@cache
def _fine(v: int, n: int, m: int) -> Format:
    """Of weights of which every column does, or every 16, for sites along the lanes."""
    return Format(
        pack=lambda matrix: fine.pack(matrix[0], v, n, m),
        width=partial(fine.width, v=v, n=n, m=m),
        product=partial(fine.launch, v=v, n=n, m=m),
        runs=fine.runs,
        multiple=cpp.COLUMNS,
        groups=False,
    )


@cache
def _tiles(v: int, n: int, m: int) -> Format:
    """Of weights of which every ``v`` columns do, for CUDA."""
    return Format(
        pack=lambda matrix: tiles.pack(matrix[0], v, n, m),
        width=partial(tiles.width, v=v, n=n, m=m),
        product=partial(tiles.product, v=v, n=n, m=m),
        runs=tiles.runs,
        multiple=v,
        groups=False,
        parts=partial(tiles.parts, v=v, n=n, m=m),
    )


SPARSE: dict[str, Callable[[NM, int], str | None]] = {
    SITES: fine.shared_name,
    LISTED: listed.name,
    FINE: fine.name,
    TILES: tiles.name,
    SEMI_STRUCTURED: semi_structured.name,
}
"""The formats that store what a weight keeps alone: the name of one that has such a pattern along
so many channels, or None."""


def named(format: str) -> Format:
    """One of ``FORMATS``, or ``LISTED``, ``FINE``, ``SITES`` or ``TILES`` with numbers. Raises
    :class:`OperandError` for an unknown name."""
    if format in FORMATS:
        return FORMATS[format]
    if found := re.fullmatch(r"(tiles |sites |)(\d+):(\d+):(\d+)", format):
        kind, (v, n, m) = found[1].strip(), map(int, found.groups()[1:])
        is_pattern = 0 < n <= m
        if is_pattern and kind == "tiles" and v == tiles.tile_columns(v) >= tiles.LEAST:
            return _tiles(v, n, m)
        if is_pattern and not kind and v == cpp.COLUMNS:
            return _listed(n, m)
        if is_pattern and (kind, v) in fine.KINDS and m <= fine.MOST_INPUTS:
            return _fine(v, n, m)
    known = " or ".join((*FORMATS, LISTED, FINE, SITES, TILES))
    raise OperandError(
        f"format={format!r}: a weight is stored as {known}, 0 < n <= m, and of {FINE} and {SITES} "
        f"m <= {fine.MOST_INPUTS}"
    )
