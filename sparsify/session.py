"""Sessions: a sampler calls the model many times; record all calls, then edit all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from .baseline import Baseline
from .changes import changed
from .codegen.errors import ConfigError, SessionError, SignatureError, SparsifyWarning
from .forecast import Forecaster
from .masks import MaskLike, fitted
from .passes.parts import Part
from .plan import Plan
from .program import Program
from .run_report import RunReport
from .runtime import Reused
from .schedule import Schedule
from .signature import Call
from .words import size_of


class Mode(Protocol):
    """What calls of a module go to inside a context."""

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        """The output; ``dense`` runs the model as it is."""
        ...


class Host(Protocol):
    """What a session needs of the module that it belongs to."""

    def program(self, call: Call, part: Part | None = None) -> Program: ...

    def program_of(self, baseline: Baseline) -> Program: ...

    def update(self, baseline: Baseline, call: Call, plan: Plan) -> tuple[Any, Any]: ...

    def update_step(
        self, baseline: Baseline, call: Call, plan: Plan, taken: Reused | None
    ) -> tuple[Any, Reused]: ...

    def restrict(self, baseline: Baseline, plan: Plan) -> Baseline: ...

    def mode_of(self, mode: Mode | None) -> AbstractContextManager[None]: ...


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

    def restrict(self, mask: MaskLike | Plan | None = None) -> None:
        """Keeps of every call only what updates of ``mask`` need (:meth:`SparseModule.restrict`).

        Under policy "exact" the masks of later calls grow beyond it where an edit spreads: such
        calls then raise :class:`MaskError`.
        """
        plan = Plan.of(mask)
        self.calls[:] = [self.module.restrict(baseline, plan) for baseline in self.calls]

    @contextmanager
    def editing(
        self, mask: MaskLike | Plan | None = None, schedule: Schedule | None = None
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

        Raises :class:`SessionError` for a call that does not match a recorded one in shapes or in
        a scalar input, for one call too many, and on leaving if there was none.
        """
        if not self.calls:
            raise SessionError(
                "nothing was recorded: run the sampler inside recording(), with what sparsify() "
                "returned in the place of the model (pipe.unet = sparse), and in the same thread"
            )
        editing = Editing(self, Plan.of(mask), schedule)
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


class Editing:
    """The mode of a module inside ``editing(mask)``; ``position`` is that of the next call."""

    def __init__(self, session: Session, plan: Plan, schedule: Schedule | None = None) -> None:
        self.session, self.plan, self.position = session, plan, 0
        self.forecaster = None if schedule is None else Forecaster(schedule)

    def __repr__(self) -> str:
        return f"<Editing: {self.position} of {len(self.session.calls)} calls made>"

    def report(self) -> RunReport:
        """What the run computed of the model, so far."""
        program = self.session.module.program_of(self.session.calls[max(self.position - 1, 0)])
        calls = tuple((step, True) for step in range(self.position))
        schedule = Schedule.every(1, max(self.position, 1))
        if self.forecaster is not None:
            calls, schedule = tuple(self.forecaster.calls), self.forecaster.schedule
        return RunReport(program.runtime.report(self.plan), schedule, calls)

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        number, calls = self._twin(call), self.session.calls
        baseline = calls[number]
        call = replace(call.like(baseline.signature), what=f"call {number + 1} of {len(calls)}")
        output = self._edited(baseline, call)
        self.position = number + 1
        return output

    def _edited(self, baseline: Baseline, call: Call) -> Any:
        """The update; where the schedule says so, from a forecast."""
        if self.forecaster is None:
            return self._updated(baseline, call)
        program = self.session.module.program_of(baseline)
        if self.forecaster.schedule.part is not None:
            return self.forecaster.run(call, *self._by_part(program, baseline, call))

        def key() -> tuple[Any, list[Any]]:
            output = self._updated(baseline, call)
            pairs = zip(tree_leaves(output), baseline.outputs, strict=True)
            return output, [_minus(*pair) for pair in pairs]

        def reuse(changes: list[Any]) -> Any:
            made = [_plus(*pair) for pair in zip(baseline.outputs, changes, strict=True)]
            return tree_unflatten(made, program.output_spec)

        return self.forecaster.run(call, key, reuse)

    def _updated(self, baseline: Baseline, call: Call) -> Any:
        return self.session.module.update(baseline, call, self._plan(baseline, call))[0]

    def _by_part(self, program: Program, baseline: Baseline, call: Call) -> tuple[Any, Any]:
        """What key steps do, and the others."""
        assert self.forecaster is not None
        part, host = self.forecaster.schedule.part, self.session.module
        if program.part != part:
            raise SessionError(
                f"{call.what} was recorded without its part {part!r}: record with a schedule that "
                "reuses it"
            )
        if program.config.policy == "exact":
            raise ConfigError(
                "under policy 'exact' masks grow from step to step, so no step can take over "
                f"values from another: edit by a schedule that reuses the output, not {part!r}"
            )

        def key() -> tuple[Any, Sequence[Any]]:
            if baseline.is_forecast:
                raise SessionError(
                    f"{call.what} was no key step when it was recorded: edit by the schedule that "
                    "the run was recorded with, or by one with fewer key steps"
                )
            return host.update_step(baseline, call, self.plan, None)

        return key, lambda taken: host.update_step(baseline, call, self.plan, taken)[0]

    def _plan(self, baseline: Baseline, call: Call) -> Plan:
        """Under policy "exact" of the mask and what the calls before have changed."""
        program = self.session.module.program_of(baseline)
        if program.config.policy != "exact":
            return self.plan
        found = changed(program.runtime, baseline, call)
        mask = fitted(self.plan.mask, baseline.grid, len(found))
        found = found if program.runtime.sidecar.items > 1 else found.any(0)
        return Plan(mask | found) if bool((found & ~mask).any()) else self.plan

    def _twin(self, call: Call) -> int:
        """The position of the recorded call that ``call`` belongs to. Raises
        :class:`SessionError`."""
        calls, at = self.session.calls, self.position
        what = f"call {at + 1} of {len(calls)}"
        if at >= len(calls):
            raise SessionError(
                f"{what}: only {len(calls)} calls were recorded: use the same number of steps"
            )
        if _is_twin(calls[at], call):
            return at
        found = [_is_twin(baseline, call) for baseline in calls[at:]]
        starts = [at + i for i, same in enumerate(found) if same and not found[i - 1]]
        if len(starts) == 1:
            return starts[0]
        if starts:
            numbers = ", ".join(str(start + 1) for start in starts)
            raise SessionError(
                f"{what} has the scalar inputs of calls {numbers}, and not those of the next one: "
                "run the sampler with the same schedule"
            )
        call = call.like(calls[at].signature)
        try:
            calls[at].signature.require(call.signature, what)
        except SignatureError as error:
            raise SessionError(str(error)) from None
        raise SessionError(
            f"{what}: {calls[at].other_scalar(call)}, and no later call had it: run the sampler "
            "with the same schedule"
        )


def _minus(new: Any, old: Any) -> Any:
    """The change of an output; what no difference can be made of stands for itself."""
    return new - old if isinstance(new, Tensor) and new.is_floating_point() else new


def _plus(old: Any, change: Any) -> Any:
    return old + change if isinstance(old, Tensor) and old.is_floating_point() else change


def _is_twin(baseline: Baseline, call: Call) -> bool:
    call = call.like(baseline.signature)
    try:
        baseline.signature.require(call.signature, "")
    except SignatureError:
        return False
    return baseline.other_scalar(call) is None
