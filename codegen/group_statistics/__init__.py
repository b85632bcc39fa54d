"""Group statistics corrected by what changed, as one operator.

``sparsify::group_statistics`` reads the current values of active sites and, in place, the
baseline's; on CUDA it is a Triton kernel (:mod:`.triton`), elsewhere the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import KERNEL_DTYPES, declare
from .reference import reference


def group_statistics(
    x: Tensor,
    old: Tensor,
    in_place: bool,
    mean: Tensor,
    rstd: Tensor,
    size: int,
    eps: float,
    sites: Tensor,
    items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`..norms.updated_statistics` of packed x [N, C, S] over a padded table ``sites`` [S].

    old is packed [N, C, S] or, with ``in_place``, the recorded rows [N, L, C] of all sites. Where
    ``items`` says whose sites these are, N is 1.
    """
    old = old if in_place else old.transpose(1, 2)
    operands = (x.transpose(1, 2), old, in_place, mean, rstd, size, eps, sites, items)
    updated: tuple[Tensor, Tensor] = torch.ops.sparsify.group_statistics(*operands)
    return updated


def _on_cuda(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    if x.dtype not in KERNEL_DTYPES:
        return reference(x, *rest)  # type: ignore[arg-type]
    from .triton import launch

    return launch(x, *rest)  # type: ignore[arg-type]


def _fake(
    x: Tensor, old: Tensor, in_place: bool, mean: Tensor, rstd: Tensor, *rest: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(rstd)


_SCHEMA = (
    "(Tensor x, Tensor old, bool in_place, Tensor mean, Tensor rstd, SymInt size, float eps, "
    "Tensor sites, Tensor? items=None) -> (Tensor, Tensor)"
)
_TAGS = (torch.Tag.needs_contiguous_strides,)
declare("group_statistics", _SCHEMA, reference, _fake, _on_cuda, _TAGS)
