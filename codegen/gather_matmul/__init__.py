"""The product of gathered rows, as one operator.

``sparsify::gather_matmul`` reads the rows of all taps through a kernel map. Of float32 weights in
panels it is a C++ kernel on CPUs (:mod:`.cpp`), of others the library's products
(:mod:`.library`); elsewhere the reference.
"""

from __future__ import annotations

from torch import Tensor

from ..operators import declare
from . import cpp, library
from .reference import reference


def _on_cpu(rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() == 1:
        return cpp.launch(rows, kernel_map, weight, bias)
    return library.product(rows, kernel_map, weight, bias)


def _fake(rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (batch, _, channels), (sites, taps) = rows.shape, kernel_map.shape
    if weight.dim() == 1:
        width = len(weight) // (taps * channels)
    else:
        width = weight.shape[0] * weight.shape[2]
    return rows.new_empty((batch, sites, width))


_SCHEMA = "(Tensor rows, Tensor kernel_map, Tensor weight, Tensor? bias) -> Tensor"
declare("gather_matmul", _SCHEMA, _on_cpu, _fake, reference)
