"""What a run of a pipeline gave, and what edits of it start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..run_report import RunReport
from ..session import Session
from ..words import sites_of, size_of
from .decoders import Outputs
from .randomness import Randomness
from .trail import Trail


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A picture that can be edited. Data that never changes: any number of edits start from it."""

    output: Any
    """What the pipeline returned."""
    arguments: Mapping[str, Any]
    """What it was given, with the states of generators."""
    sessions: Mapping[str, Session | Outputs]
    """What the calls of each model of the pipeline keep, by its name; empty if it was not kept."""
    trail: Trail
    randomness: Randomness
    first_steps: Mapping[str, int]
    """At which step of the run each model was first called."""
    mask: Tensor | None = None
    """bool [H, W] or [N, H, W] at the sites of the latents: what was edited; None for a first
    run."""
    reports: Mapping[str, RunReport] | None = None
    """What an edit computed of each model."""

    def __repr__(self) -> str:
        own = "first run" if self.mask is None else f"edit of {sites_of(self.mask)}"
        return f"<Result of a {own}: {size_of(self.nbytes)} kept>"

    @property
    def images(self) -> Any:
        """The pipeline's pictures, or the frames of its videos."""
        for name in ("images", "frames"):
            if hasattr(self.output, name):
                return getattr(self.output, name)
        return self.output[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the models' calls keep."""
        own = (one for one in self.sessions.values() if isinstance(one, Session))
        return sum(session.nbytes for session in own)
