"""Where a run is edited, and from which step on: as its user says, as its first steps find, or
both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

from torch import Tensor

from .codegen.errors import SessionError
from .finding import Finding
from .masks import fitted
from .passes.layout import Grid
from .plan import Plan


class Arrangement(Protocol):
    """How the sites of a scope lie in the inputs of a model."""

    @property
    def is_stepped(self) -> bool:
        """Is the model called at each step? Else after all of them."""
        ...

    def picture(self, values: Tensor) -> Tensor:
        """[N, C, H, W] at the sites of the model -> [M, D, h, w] at those of the scope."""
        ...

    def mask(self, mask: Tensor, grid: Grid, items: int) -> Tensor:
        """bool [h, w] or [M, h, w] of the scope -> [H, W] or [N, H, W] of a model's ``grid``."""
        ...


class SameSites:
    """Masks are those of the model's inputs."""

    is_stepped = True

    def picture(self, values: Tensor) -> Tensor:
        return values

    def mask(self, mask: Tensor, grid: Grid, items: int) -> Tensor:
        return fitted(mask, grid, items)


SAME_SITES = SameSites()


class Scope:
    """Of one model, or of several that call each other in turn."""

    def __init__(
        self,
        marked: Sequence[Plan],
        finding: Finding | None = None,
        start: int = 0,
        takes_recorded: bool = False,
    ) -> None:
        """``marked`` is one mask for all steps, one for each, or, where ``finding`` tells, none.
        Steps before ``start`` are the recorded ones. With ``takes_recorded`` all that is outside
        is meant to be the recorded picture; without, other inputs there are worth a warning."""
        self.finding, self.start = finding, start
        self.takes_recorded = takes_recorded or finding is not None
        self._marked = tuple(marked)
        self._found: Tensor | None = None
        self._plans: dict[tuple[Arrangement, Grid, int, int | None], Plan] = {}

    @property
    def is_known(self) -> bool:
        return self.finding is None or self._found is not None

    @property
    def has_steps(self) -> bool:
        """Has each step a mask of its own?"""
        return len(self._marked) > 1

    @property
    def mask(self) -> Tensor:
        """bool [H, W] or [N, H, W], of all steps. Raises :class:`SessionError` before it is
        found."""
        return self._mask(None)

    def mask_at(self, step: int) -> Tensor:
        """That of one step. Raises :class:`SessionError` also for a step without a mask."""
        return self._mask(step if self.has_steps else None)

    def find(self) -> None:
        """The steps that are looked at have been made."""
        assert self.finding is not None
        self._found = self.finding.mask()

    def plan(self, sites: Arrangement, grid: Grid, items: int, step: int | None = None) -> Plan:
        """For a model's ``grid`` and ``items``, at a ``step``, or None: of all steps.

        Raises :class:`SessionError` before it is found, and for a step without a mask."""
        if sites is SAME_SITES and len(self._marked) == 1 and self.finding is None:
            return self._marked[0]  # with the tables that its user made before
        key = sites, grid, items, step if self.has_steps else None
        if key not in self._plans:
            self._plans[key] = Plan(sites.mask(self._mask(key[-1]), grid, items))
        return self._plans[key]

    def _mask(self, step: int | None) -> Tensor:
        if not self.is_known:
            raise SessionError("the mask is not found yet: the first steps tell")
        masks = [plan.mask for plan in self._marked]
        if step is not None:
            if step >= len(masks):
                raise SessionError(f"step {step + 1} has no mask: {len(masks)} were given")
            masks = [masks[step]]
        if self._found is None:
            return reduce(Tensor.__or__, masks)
        items, *grid = self._found.shape
        own = (fitted(mask, (grid[0], grid[1]), items) for mask in masks)
        return reduce(Tensor.__or__, own, self._found)
