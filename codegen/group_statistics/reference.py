"""``sparsify::group_statistics`` in plain torch."""

from __future__ import annotations

from torch import Tensor

from ..norms import updated_statistics


def reference(
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
    """On rows: x [N, S, C], old [N, S or L, C]."""
    taken = old.index_select(1, sites) if in_place else old
    return updated_statistics(x.mT, taken.mT, mean, rstd, size, eps, sites, items)
