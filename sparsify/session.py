"""Sessions: a sampler calls the model many times; record all calls, then edit all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from .baseline import Baseline
from .changes import changed
from .codegen.errors import SessionError, SignatureError, SparsifyWarning
from .forecast import Forecaster, of_outputs
from .masks import MaskLike, fitted
from .plan import Plan
from .program import Program
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

    def program(self, call: Call) -> Program: ...

    def program_of(self, baseline: Baseline) -> Program: ...

    def update(self, baseline: Baseline, call: Call, plan: Plan) -> tuple[Any, Any]: ...

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

        With a ``schedule`` only its key steps are updates. At the others what an edit changes is
        forecast: the recorded output is known.

        Raises :class:`SessionError` for a call that does not match a recorded one in shapes or in
        a scalar input, for one call too many, and on leaving if there was none.
        """
        if not self.calls:
            raise SessionError(
                "nothing was recorded: run the sampler inside recording(), with what sparsify() "
                "returned in the place of the model (pipe.unet = sparse), and in the same thread"
            )
        editing = Editing(self, Plan.of(mask), of_outputs(schedule))
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


@dataclass(repr=False)
class Recording:
    """The mode of a module inside ``recording()``."""

    session: Session
    forecaster: Forecaster | None = None

    def __repr__(self) -> str:
        return f"<Recording: {len(self.session.calls)} calls so far>"

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        output, baseline = self._recorded(call)
        self.session.calls.append(baseline)
        return output

    def _recorded(self, call: Call) -> tuple[Any, Baseline]:
        program = self.session.module.program(call)
        if self.forecaster is None:
            return program.record(call)
        place = self.forecaster.tick(call)
        if (made := self.forecaster.forecast_at(place, call)) is not None:
            return program.forecast(call, made)
        output, baseline = program.record(call)
        self.forecaster.keep(place, call, baseline.outputs)
        return output, baseline


@dataclass(repr=False)
class Editing:
    """The mode of a module inside ``editing(mask)``; ``position`` is that of the next call."""

    session: Session
    plan: Plan
    forecaster: Forecaster | None = None
    position: int = 0

    def __repr__(self) -> str:
        return f"<Editing: {self.position} of {len(self.session.calls)} calls made>"

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        number, calls = self._twin(call), self.session.calls
        baseline = calls[number]
        call = replace(call.like(baseline.signature), what=f"call {number + 1} of {len(calls)}")
        output = self._edited(baseline, call)
        self.position = number + 1
        return output

    def _edited(self, baseline: Baseline, call: Call) -> Any:
        """The update; where the schedule says so, a forecast of what it changes."""
        program, place = self.session.module.program_of(baseline), None
        if self.forecaster is not None:
            place = self.forecaster.tick(call)
            if (changes := self.forecaster.forecast_at(place, call)) is not None:
                made = [_plus(*pair) for pair in zip(baseline.outputs, changes, strict=True)]
                return tree_unflatten(made, program.output_spec)
        output, _ = self.session.module.update(baseline, call, self._plan(baseline, call))
        if self.forecaster is not None and place is not None:
            pairs = zip(tree_leaves(output), baseline.outputs, strict=True)
            self.forecaster.keep(place, call, [_minus(*pair) for pair in pairs])
        return output

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
