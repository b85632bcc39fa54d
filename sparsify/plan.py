"""What depends on a mask alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .baseline import distinct
from .codegen.tables import padded_sites
from .masks import MaskLike, as_mask
from .passes.graphs import Row
from .words import sites_of, size_of


@dataclass(frozen=True, eq=False, repr=False)
class Tables:
    """What a program made of a mask."""

    mask: Tensor
    """bool [H, W] or [N, H, W], on the host."""
    tables: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    """bool [H, W] or [N, H, W], by name."""
    is_dense: bool
    """The edit is so large that the dense model runs instead of the update."""
    rows: Mapping[str, Row] = field(default_factory=dict)
    weights: str = ""
    """What of the weights they depend on."""

    def __repr__(self) -> str:
        size = size_of(sum(distinct(list(self.tables.values()))))
        what = "the dense model runs" if self.is_dense else f"{len(self.tables)} of {size}"
        return f"<Tables of {sites_of(self.mask)}: {what}>"

    @cached_property
    def kept(self) -> dict[tuple[str, ...], Tensor]:
        """int64, ascending: the sites that restricted baselines keep, by the tables that name
        them."""
        groups = {row.kept for row in self.rows.values()}
        sites = {g: torch.cat([self.tables[name] for name in g]).unique() for g in groups}
        # On CUDA in one of few sizes, as all tables are.
        return {g: padded_sites(own) if own.is_cuda else own for g, own in sites.items()}

    @cached_property
    def of_restricted(self) -> dict[str, Tensor]:
        """The tables that take the place of others where a baseline is restricted."""
        return {
            name: torch.searchsorted(self.kept[row.kept], self.tables[row.table])
            for name, row in self.rows.items()
        }

    @cached_property
    def is_empty(self) -> bool:
        return not bool(self.mask.any())


@dataclass(eq=False, repr=False)
class Plan:
    """A mask, and, per program, the tables made from it.

    ``given`` is what :func:`sparsify.masks.as_mask` takes; who paints it later changes nothing.
    """

    given: InitVar[MaskLike | None]
    mask: Tensor = field(init=False)
    """bool [H, W] or [N, H, W], on the host, in the size in which it was given."""
    tables: dict[str, Tables] = field(default_factory=dict)
    """By the key of the program."""

    def __post_init__(self, given: MaskLike | None) -> None:
        self.mask = as_mask(given)

    def __getstate__(self) -> dict[str, Any]:
        """The mask alone."""
        return {"mask": self.mask, "tables": {}}

    @staticmethod
    def of(mask: MaskLike | Plan | None) -> Plan:
        """Raises :class:`MaskError`."""
        return mask if isinstance(mask, Plan) else Plan(mask)

    def __repr__(self) -> str:
        return f"<Plan of {list(self.mask.shape)}: {sites_of(self.mask)}>"
