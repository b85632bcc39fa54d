"""The passes in order, from a captured graph to the graphs that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsify.codegen.errors import ConfigError

from .base import Pass
from .graphs import Graphs

Observer = Callable[[Graphs], None]
"""Called after every pass, with what it made."""


@dataclass(frozen=True)
class Pipeline:
    """A pass for each step. Raises :class:`ConfigError` for one that comes before what it requires;
    ``given`` is what holds at the start."""

    passes: tuple[Pass, ...]
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.given)
        for step in self.passes:
            if missing := sorted(set(step.requires) - known):
                raise ConfigError(
                    f"the pass {step.name} requires {missing[0]}, which no pass ensures before it"
                )
            known.update(step.ensures)

    def __call__(self, graphs: Graphs, observe: Observer | None = None) -> Graphs:
        for step in self.passes:
            graphs = step.apply(graphs).after(step.name, step.ensures)
            if observe is not None:
                observe(graphs)
        return graphs

    @property
    def ensured(self) -> tuple[str, ...]:
        """What holds at the end."""
        return (*self.given, *(name for step in self.passes for name in step.ensures))

    def including(self, extra: Iterable[Pass]) -> Pipeline:
        """With further passes, each as early as what it requires allows."""
        passes = list(self.passes)
        for step in extra:
            known, at = set(self.given), 0
            while at < len(passes) and not known.issuperset(step.requires):
                known.update(passes[at].ensures)
                at += 1
            passes.insert(at, step)
        return Pipeline(tuple(passes), self.given)

    def __str__(self) -> str:
        rows = (
            f"{step.name}: {', '.join(step.requires)} -> {', '.join(step.ensures)}"
            for step in self.passes
        )
        return "\n".join(rows)
