"""Sessions: a sampler calls the model many times; record all calls, then edit all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .attention import require_words
from .baseline import Baseline
from .codegen.errors import ConfigError, SessionError, SparsifyWarning
from .editing import Edits
from .finding import Find, Finding, Way, ways_of
from .forecast import Forecaster
from .host import Host
from .masks import MaskLike, by_step
from .plan import Plan
from .schedule import Schedule
from .scope import Scope
from .session_file import save_calls
from .signature import Call
from .store import BaselineStore, Calls
from .words import size_of


@dataclass(repr=False)
class Session:
    """The calls of one sampling run, in order, each with its baseline."""

    module: Host
    calls: list[Baseline] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Session of {len(self.calls)} calls: {size_of(self.nbytes)} kept>"

    @property
    def nbytes(self) -> int:
        """Bytes kept of all calls."""
        return sum(baseline.nbytes for baseline in self.calls)

    @property
    def store(self) -> BaselineStore | None:
        """Where the values of its calls lie, if they were recorded, or loaded, into a store."""
        return self.calls.store if isinstance(self.calls, Calls) else None

    def no_calls(self, schedule: Schedule | None = None) -> list[Baseline]:
        """An empty list for those of another run by a ``schedule``, which lie in the same store."""
        kept = sum(bool(baseline.values) for baseline in self.calls)
        return Calls.of(self.store, kept, schedule)

    def restrict(self, mask: MaskLike | Plan | None = None) -> None:
        """Keeps of every call only what updates of ``mask`` need (:meth:`SparseModule.restrict`).

        Under policy "exact" the masks of later calls grow beyond it where an edit spreads: such
        calls then raise :class:`MaskError`.
        """
        plan = Plan.of(mask)
        restricted = self.no_calls()
        for baseline in self.calls:
            restricted.append(self.module.restrict(baseline, plan))
        self.calls[:] = restricted

    def __getitem__(self, calls: slice) -> Session:
        """Some of the calls, such as ``session[10:]`` for a run that starts late."""
        own = self.calls[calls]
        return Session(self.module, own if self.store is None else Calls(self.store, own))

    def save(self, path: str | Path) -> None:
        """Writes the folder ``path``, for :meth:`SparseModule.load_session` in any process with the
        same model. A session there is replaced; if anything fails, it stays as it was.

        Raises :class:`FolderError`, and :class:`BaselineError` for calls with arguments that no
        file can hold.
        """
        save_calls(self.calls, Path(path))

    @contextmanager
    def editing(
        self,
        mask: MaskLike | Plan | Sequence[MaskLike] | None = None,
        schedule: Schedule | None = None,
        *,
        after: int | None = None,
        margin: int = 1,
        find: Find = "latents",
        keep: bool = False,
    ) -> Iterator[Editing]:
        """Inside, the model's calls are updates of the recorded ones.

        Each call belongs to the next recorded one if it has its scalar inputs (timestep, label),
        and else to the only later one that has them; of several such calls in a row, to the first.
        So a sampler may start late (``strength=0.5``); that it leaves early gives a warning.

        Under policy "exact" the mask of a call is ``mask`` and all that differs from its recorded
        inputs, for what was edited spreads from step to step. The run equals the dense one; the
        mask says where the edit may start, and where a new prompt holds.

        With a ``schedule`` that reuses the output, only its key steps are updates. At the others
        what an edit changes is forecast: the recorded output is known. With one that reuses a part
        of the model, all steps are updates, of which only those at key steps compute this part; the
        run has to be recorded with a schedule of the same part.

        A list of masks has one for each step (as in differential diffusion): what a later one adds
        starts from the recorded picture of that step, what it leaves out goes back to it.

        With ``after`` the mask is found: the calls of so many steps run the model, and where they
        changed the picture, the others are updates (:mod:`.found_masks`, grown by ``margin``
        sites). It is :attr:`Editing.mask` then, with ``mask`` beside it, if there is one. A call
        whose inputs are the recorded ones, as those of an unchanged prompt are, runs nothing. With
        ``find="attention"`` it is the sites that heed the words that changed; a tuple of names
        takes their union.

        With ``keep`` the edited run is kept: :attr:`Editing.session` can be edited in turn, any
        number of times. Its baselines are committed when they are read, and need those that they
        were edited from until then; in a store they are committed at once. Calls before a late
        start stay the recorded ones.

        Raises :class:`SessionError` for a call that does not match a recorded one in shapes or in
        a scalar input, for one call too many, and on leaving if there was none;
        :class:`ConfigError` for ``after`` under policy "exact", and with a schedule that reuses a
        part.
        """
        if not self.calls:
            raise SessionError(
                "nothing was recorded: run the sampler inside recording(), with what sparsify() "
                "returned in the place of the model (pipe.unet = sparse), and in the same thread"
            )
        finding = None
        if after is not None:
            program = self.module.program_of(self.calls[0])
            require_findable(schedule, after, margin, program.config.policy == "exact")
            finding = Finding(after, margin, _ways(self, find))
        is_found = mask is None and finding is not None
        scope = Scope([] if is_found else _plans(mask), finding)
        kept = self.no_calls(schedule) if keep else None
        editing = Editing(self.module, self.calls, scope, schedule, kept)
        with self.module.mode_of(editing):
            yield editing
        made, recorded = editing.position, len(self.calls)
        if not made:
            raise SessionError(
                f"{recorded} calls were recorded but none made while editing: run the sampler "
                "with the sparse model, not with the dense one"
            )
        if made != recorded:
            warnings.warn(
                f"{recorded} calls were recorded but the run was left after call {made}",
                SparsifyWarning,
                stacklevel=3,
            )


class Editing(Edits):
    """What ``editing(mask)`` gives."""

    @property
    def session(self) -> Session:
        """That of the edited run, which grows call by call. Raises :class:`SessionError` if it is
        not kept."""
        if self.kept is None:
            raise SessionError("the edited run was not kept: edit with keep=True")
        return Session(self.host, self.kept)


class Recording:
    """The mode of a module inside ``recording()``."""

    def __init__(self, session: Session, schedule: Schedule | None = None) -> None:
        self.session = session
        self.forecaster = None if schedule is None else Forecaster(schedule)

    def __repr__(self) -> str:
        return f"<Recording: {len(self.session.calls)} calls so far>"

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        output, baseline = self._recorded(call)
        self.session.calls.append(baseline)
        return output

    def _recorded(self, call: Call) -> tuple[Any, Baseline]:
        forecaster, host = self.forecaster, self.session.module
        if forecaster is None:
            return host.program(call).record(call)
        program = host.program(call, forecaster.schedule.part)

        def key() -> tuple[tuple[Any, Baseline], Sequence[Any]]:
            if program.part is None:
                output, baseline = program.record(call)
                return (output, baseline), baseline.outputs
            output, baseline, values = program.record_step(call, None)
            return (output, baseline), values

        def reuse(taken: list[Any]) -> tuple[Any, Baseline]:
            if program.part is None:
                return program.forecast(call, taken)
            return program.record_step(call, taken)[:2]

        return forecaster.run(call, key, reuse)


def _plans(mask: MaskLike | Plan | Sequence[MaskLike] | None) -> list[Plan]:
    masks: list[MaskLike | Plan] = by_step(mask)
    return [Plan.of(own) for own in masks] or [Plan.of(None)]


def _ways(session: Session, find: Find) -> tuple[Way, ...]:
    ways = ways_of(find)
    if "reference" in ways:
        raise ConfigError(
            f"find={find!r}: a session knows no scheduler, which tells the picture that a step "
            "predicts: edit by an Editor, or take 'latents' or 'attention'"
        )
    if "attention" in ways:
        require_words([session.module.program_of(session.calls[0])])
    return ways


def require_findable(schedule: Schedule | None, after: int, margin: int, is_exact: bool) -> None:
    """Raises :class:`ConfigError` for numbers that cannot be, under policy "exact", and for a
    schedule that reuses a part beside a mask that is found."""
    if after < 1 or margin < 0:
        raise ConfigError(f"after={after}, margin={margin}: at least 1 step, and 0 sites")
    if is_exact:
        raise ConfigError(
            f"after={after}: under policy 'exact' all that differs is edited, and a mask that is "
            "found leaves out the least of it: take policy 'fixed', or give a mask, "
            "torch.ones(height, width, dtype=torch.bool) for all of it"
        )
    if schedule is not None and schedule.part is not None:
        raise ConfigError(
            f"after={after}: steps that find the mask compute all sites, of which no step can take "
            f"over {schedule.part!r} at active ones: edit by a schedule that reuses the output"
        )
