"""How the weight of a product is stored: each format with the kernel that reads it, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ..errors import OperandError
from . import cpp, library, listed
from .reference import reference

PLAIN = "plain"
"""As torch's own operators read it: the only format in exports."""
LISTED = "16:n:m"
"""Of formats such as 16:2:4: of weights that :func:`sparsify::nm_masked` makes."""


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
    ),
    "panels": Format(
        pack=lambda matrix: cpp.panels(matrix[0]),
        width=lambda weight, depth: len(weight) // depth,
        product=cpp.launch,
        runs=cpp.runs,
        multiple=cpp.COLUMNS,
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


def named(format: str) -> Format:
    """One of ``FORMATS``, or ``LISTED`` with numbers. Raises :class:`OperandError` for an unknown
    name."""
    if format in FORMATS:
        return FORMATS[format]
    if found := re.fullmatch(r"16:(\d+):(\d+)", format):
        n, m = map(int, found.groups())
        if 0 < n <= m:
            return _listed(n, m)
    known = " or ".join((*FORMATS, LISTED))
    raise OperandError(f"format={format!r}: a weight is stored as {known}, 0 < n <= m")
