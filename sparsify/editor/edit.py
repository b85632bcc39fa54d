"""One edit of a result: where it is, the step that it starts at, and what each model does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..attention import require_words
from ..changed_words import Words
from ..codegen.errors import ConfigError, MaskError, SessionError, SparsifyWarning
from ..config import SparsifyConfig
from ..editing import Edits
from ..finding import Find, Finding, Way, ways_of
from ..found_masks import distance_map
from ..host import Mode
from ..masks import MaskLike, as_mask
from ..plan import Plan
from ..program import Program
from ..run_report import RunReport
from ..schedule import Schedule
from ..scope import Scope
from ..session import Session, require_findable
from .clean import require_clean
from .decoders import DecoderEdits, DenseEdits, Outputs, first_decoded
from .encoders import EncoderEdits
from .lattice import Lattice, arrangement_of, for_items
from .parts import Parts
from .prompts import changed_words
from .result import Result
from .steps import Predicted
from .trail import Begin, EditedTrail, Trail


class Found(BaseException):
    """A preview is over. No pipeline catches it."""


class PictureScope(Scope):
    """Of one mask for each of so many ``pictures``, whose halves of guidance share it."""

    pictures: int

    def find(self) -> None:
        super().find()
        self._found = for_items(self.mask, self.pictures)


class Preview(PictureScope):
    """Ends the run once it is found."""

    def find(self) -> None:
        super().find()
        raise Found


class Edit:
    """``arguments`` are those of the pipeline, with the states of generators."""

    def __init__(
        self,
        pipe: Any,
        previous: Result,
        arguments: Mapping[str, Any],
        parts: Parts,
        config: SparsifyConfig,
        schedule: Schedule | None = None,
        keep: bool = True,
    ) -> None:
        """Raises :class:`SessionError` for a result that was not kept, or of another pipeline."""
        if not previous.trail.times or not previous.sessions:
            raise SessionError("this result was not kept: make it with keep=True")
        if other := sorted(previous.sessions.keys() - parts.keys()):
            raise SessionError(
                f"this result has calls of {other[0]!r}, which this pipeline does not have: edit "
                "it by the editor that made it"
            )
        # Of these parts, whoever recorded them: baselines are known by their model's weights.
        self._sessions = {
            name: Session(parts[name]._engine, own.calls) if isinstance(own, Session) else own
            for name, own in previous.sessions.items()
            if isinstance(own, Session) or name not in parts.encoders
        }
        self._pipe, self.previous, self.arguments = pipe, previous, arguments
        self._parts, self._config = parts, config
        self._schedule, self._keep = schedule, keep
        self.decoded = first_decoded(previous.sessions, parts.decoders)
        """By which decoder, if there was one."""
        self._given = None if self.decoded is None else self.decoded[1].given.shape
        self.lattice = Lattice.of(previous.trail.latents[-1].shape, self._given)
        self.modes: Mapping[str, Mode] = {}

    @property
    def is_exact(self) -> bool:
        return self._config.policy == "exact"

    def begin(self, scope: Scope, begin: Begin | None = None) -> None:
        """The modes of the models for a run inside of ``scope``; ``begin`` as for
        :class:`EditedTrail`."""
        self._scope = scope
        recorded = self.previous.trail
        self.trail = EditedTrail(recorded, scope, self.lattice, self.is_exact, begin)
        self.modes = {
            name: self._mode(name, own) for name, own in self._sessions.items() if own.calls
        }

    def scope(
        self,
        masks: Sequence[MaskLike],
        after: int | None,
        margin: int,
        start: int = 0,
        kind: type[PictureScope] = PictureScope,
        find: Find = "latents",
    ) -> Scope:
        """Where ``masks`` say, and where ``after`` steps tell: by default a fifth of them, if there
        is no mask, or it is said how to ``find`` one. Raises :class:`ConfigError`,
        :class:`MaskError`."""
        ways = ways_of(find)
        if after is None and (not masks or find != "latents"):
            after = max(1, round((self.previous.trail.steps - start) / 5))
        if after is not None:
            self._require_findable(after, margin, self.previous.trail.steps - start)
        plans = [self._plan(own) for own in masks]
        finding = None if after is None else self._finding(after, margin, ways)
        scope = kind(plans, finding, start, takes_recorded=True)
        scope.pictures = len(self.previous.trail.latents[-1])
        return scope

    def _require_findable(self, after: int, margin: int, steps: int) -> None:
        require_findable(self._schedule, after, margin, self.is_exact)
        if after >= steps:
            raise ConfigError(
                f"after={after}: {steps} steps are made, and none is left for what they find: give "
                "a mask"
            )

    def _plan(self, mask: MaskLike) -> Plan:
        """In the sites of the latents."""
        own, pictures = as_mask(mask), len(self.previous.trail.latents[-1])
        if own.dim() == 3 and len(own) not in (1, pictures):
            raise MaskError(f"the mask is {list(own.shape)}: give [H, W], or {pictures} of them")
        return Plan(self.lattice.fitted(own))

    def _finding(self, after: int, margin: int, ways: tuple[Way, ...]) -> Finding:
        words: tuple[Words, ...] = ()
        if "attention" in ways:
            require_words(self._programs())
            pictures = len(self.previous.trail.latents[-1])
            words = changed_words(self._pipe, self.previous.arguments, self.arguments, pictures)
        if "reference" in ways:
            require_clean(self._pipe.scheduler)
        return Finding(after, margin, ways, words)

    def _programs(self) -> Iterator[Program]:
        """Of the models that are called at each step."""
        for name, own in self._sessions.items():
            if isinstance(own, Session) and own.calls and name in self._parts.stepped:
                yield own.module.program_of(own.calls[0])

    @property
    def predicted(self) -> Predicted | None:
        """What is told the clean latents of each step, if the mask is found from these."""
        finding = self._scope.finding
        if finding is None or "reference" not in finding.ways:
            return None
        recorded = self.lattice.by_site(self.previous.trail.latents[-1])

        def look(clean: Tensor) -> None:
            if not self._scope.is_known:
                finding.distance = distance_map(self.lattice.by_site(clean), recorded)

        return look

    def result(self, output: Any) -> Result:
        """Of a run that has ended."""
        known = self._scope.is_known
        if not known:
            warnings.warn(
                "the run ended before its mask was found, so its picture is that of a dense one",
                SparsifyWarning,
                stacklevel=3,
            )
        sessions = {name: _kept(mode) for name, mode in self.modes.items()} if self._keep else {}
        trail = Trail(self.trail.times, self.trail.latents) if self._keep else Trail()
        return Result(
            output,
            self.arguments,
            sessions,
            trail,
            self.previous.randomness,
            self.previous.first_steps,
            self._scope.mask if known else None,
            self._reports() if known else None,
        )

    def _reports(self) -> dict[str, RunReport]:
        edits = ((name, mode) for name, mode in self.modes.items() if isinstance(mode, Edits))
        return {name: mode.report() for name, mode in edits if mode.position}

    def _mode(self, name: str, own: Session | Outputs) -> Mode:
        if isinstance(own, Outputs):
            return DenseEdits(own, self._scope, self.trail)
        if name in self._parts.encoders:
            return EncoderEdits(own.module, own.calls, own.no_calls() if self._keep else None)
        is_stepped = name in self._parts.stepped
        sites = arrangement_of(
            self.lattice, self._given, own.calls[0].grid, self._config.dilation, is_stepped
        )
        schedule = self._schedule if is_stepped else None
        kept = own.no_calls(schedule) if self._keep else None
        options = self._scope, schedule, kept, sites, self.previous.first_steps.get(name, 0)
        if is_stepped:
            return Edits(own.module, own.calls, *options)
        mode = DecoderEdits(own.module, own.calls, *options)
        mode.trail = self.trail
        return mode


def _kept(mode: Mode) -> Session | Outputs:
    if isinstance(mode, DenseEdits):
        return mode.kept
    assert isinstance(mode, Edits) and mode.kept is not None
    return Session(mode.host, mode.kept)
