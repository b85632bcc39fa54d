"""The product of gathered rows, as one operator.

``sparsify::gather_matmul`` reads the rows of all taps through a kernel map. The format of its
weight (:mod:`.formats`) says which kernel computes it.
"""

from __future__ import annotations

from torch import Tensor

from ..operators import declare
from .formats import named


def _product(
    rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None, format: str
) -> Tensor:
    return named(format).product(rows, kernel_map, weight, bias)


def _fake(
    rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None, format: str
) -> Tensor:
    (batch, _, channels), (sites, taps) = rows.shape, kernel_map.shape
    return rows.new_empty((batch, sites, named(format).width(weight, taps * channels)))


_SCHEMA = "(Tensor rows, Tensor kernel_map, Tensor weight, Tensor? bias, str format) -> Tensor"
declare("gather_matmul", _SCHEMA, _product, _fake)
