"""What samplers' calls go to, and what this needs of the wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .baseline import Baseline
from .passes.parts import Part
from .plan import Plan
from .program import Program
from .runtime import Reused
from .signature import Call


class Mode(Protocol):
    """What calls of a module go to inside a context."""

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        """The output; ``dense`` runs the model as it is."""
        ...


class Host(Protocol):
    """What sessions, samplers and calibrations need of the module that they belong to."""

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call: ...

    def program(self, call: Call, part: Part | None = None) -> Program: ...

    def program_of(self, baseline: Baseline) -> Program: ...

    def update(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool = False
    ) -> tuple[Any, Baseline | None]: ...

    def update_step(
        self,
        baseline: Baseline,
        call: Call,
        plan: Plan,
        taken: Reused | None,
        commit: bool = False,
    ) -> tuple[Any, Reused, Baseline | None]: ...

    def restrict(self, baseline: Baseline, plan: Plan) -> Baseline: ...

    def mode_of(self, mode: Mode | None) -> AbstractContextManager[None]: ...
