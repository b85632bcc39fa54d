"""Editing a recorded run: its calls are updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from .baseline import Baseline
from .changes import changed
from .codegen.errors import ConfigError, SessionError, SignatureError, SparsifyWarning
from .finding import Finding
from .forecast import Forecaster
from .host import Host
from .masks import fitted
from .plan import Plan
from .program import Program
from .run_report import RunReport
from .runtime import copied
from .schedule import Schedule
from .signature import Call

Edited = tuple[Any, Baseline | None]
"""The output of a call, and with commits its baseline."""
Key = Callable[[], tuple[Edited, Sequence[Any]]]
Reuse = Callable[[list[Any]], Edited]


class Edits:
    """The mode of a module inside ``editing(mask)``; ``position`` is that of the next call."""

    def __init__(
        self,
        host: Host,
        recorded: Sequence[Baseline],
        plan: Plan | None,
        schedule: Schedule | None = None,
        finding: Finding | None = None,
        kept: list[Baseline] | None = None,
    ) -> None:
        """What is found is added to the ``plan``, if there is one; the calls of the edited run are
        added to those ``kept``."""
        self.host, self.recorded, self.position, self.kept = host, recorded, 0, kept
        self._own, self._finding = plan, finding
        self._known = plan if finding is None else None
        self.forecaster = None if schedule is None else Forecaster(schedule)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.position} of {len(self.recorded)} calls made>"

    @property
    def plan(self) -> Plan:
        """Of the updates. Raises :class:`SessionError` before their mask was found."""
        if self._known is None:
            raise SessionError("the mask is not found yet: the first steps tell")
        return self._known

    @property
    def mask(self) -> Tensor:
        """bool [H, W] or [N, H, W]: where the run is edited. Raises as :attr:`plan`."""
        return self.plan.mask

    def report(self) -> RunReport:
        """What the run computed of the model, so far."""
        program = self.host.program_of(self.recorded[max(self.position - 1, 0)])
        calls = tuple((step, True) for step in range(self.position))
        schedule = Schedule.every(1, max(self.position, 1))
        if self.forecaster is not None:
            calls, schedule = tuple(self.forecaster.calls), self.forecaster.schedule
        return RunReport(program.runtime.report(self.plan), schedule, calls)

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        number, calls = self._twin(call), self.recorded
        baseline = calls[number]
        call = replace(call.like(baseline.signature), what=f"call {number + 1} of {len(calls)}")
        output, new = self._edited(baseline, call, dense)
        if self.kept is not None and new is not None:
            if not self.position:  # what comes before a late start is as it was
                self.kept[:] = calls[:number]
            self.kept.append(new)
        self.position = number + 1
        return output

    @property
    def _commits(self) -> bool:
        return self.kept is not None

    def _edited(self, baseline: Baseline, call: Call, dense: Callable[[], Any]) -> Edited:
        """The update; where the schedule says so, from a forecast."""
        if self._finding is not None and self._finding.looks_at(call):
            self._find(self._finding, baseline, call)
        if self.forecaster is None:
            return self._updated(baseline, call, dense)
        program = self.host.program_of(baseline)
        if self.forecaster.schedule.part is not None:
            return self.forecaster.run(call, *self._by_part(program, baseline, call))

        def key() -> tuple[Edited, list[Any]]:
            edited = self._updated(baseline, call, dense)
            pairs = zip(tree_leaves(edited[0]), baseline.outputs, strict=True)
            return edited, [_minus(*pair) for pair in pairs]

        def reuse(changes: list[Any]) -> Edited:
            made = [_plus(*pair) for pair in zip(baseline.outputs, changes, strict=True)]
            if self._finding is not None and self._finding.is_done:
                masks = program.plan(self.plan).masks
                made = program.runtime.edited_outputs(made, baseline.outputs, masks)
            if self._commits:
                return program.forecast(call, made)
            return tree_unflatten(made, program.output_spec), None

        return self.forecaster.run(call, key, reuse)

    def _updated(self, baseline: Baseline, call: Call, dense: Callable[[], Any]) -> Edited:
        host = self.host
        if self._finding is None:
            return host.update(baseline, call, self._plan(baseline, call), self._commits)
        program = host.program_of(baseline)
        if not self._finding.is_done:
            if self._finding.is_unchanged(baseline, call):
                return tree_unflatten(copied(baseline.outputs), program.output_spec), baseline
            return program.record(call) if self._commits else (dense(), None)
        masks = program.plan(self.plan).masks
        leaves = program.runtime.edited_inputs(call.leaves, baseline.inputs, masks)
        return host.update(baseline, call.of(leaves), self.plan, self._commits)

    def _find(self, finding: Finding, baseline: Baseline, call: Call) -> None:
        """A step begins; the last of those looked at tells the mask."""
        program = self.host.program_of(baseline)
        finding.look(program.runtime, baseline, call)
        if not finding.is_done:
            return
        mask = finding.mask()
        if self._own is not None:
            mask = mask | fitted(self._own.mask, baseline.grid, len(mask))
        self._known = Plan(mask)
        if program.plan(self._known).is_dense:
            warnings.warn(
                f"the mask that was found has {mask.float().mean():.0%} of the sites, so that the "
                "run goes on densely inside of it: see `dense_above`",
                SparsifyWarning,
                stacklevel=2,
            )

    def _by_part(self, program: Program, baseline: Baseline, call: Call) -> tuple[Key, Reuse]:
        """What key steps do, and the others."""
        assert self.forecaster is not None
        part, host = self.forecaster.schedule.part, self.host
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

        def key() -> tuple[Edited, Sequence[Any]]:
            if baseline.is_forecast:
                raise SessionError(
                    f"{call.what} was no key step when it was recorded: edit by the schedule that "
                    "the run was recorded with, or by one with fewer key steps"
                )
            output, values, new = host.update_step(baseline, call, self.plan, None, self._commits)
            return (output, new), values

        def reuse(taken: list[Any]) -> Edited:
            output, _, new = host.update_step(baseline, call, self.plan, taken, self._commits)
            return output, new

        return key, reuse

    def _plan(self, baseline: Baseline, call: Call) -> Plan:
        """Under policy "exact" of the mask and what the calls before have changed."""
        program = self.host.program_of(baseline)
        if program.config.policy != "exact":
            return self.plan
        found = changed(program.runtime, baseline, call)
        mask = fitted(self.plan.mask, baseline.grid, len(found))
        found = found if program.runtime.sidecar.items > 1 else found.any(0)
        return Plan(mask | found) if bool((found & ~mask).any()) else self.plan

    def _twin(self, call: Call) -> int:
        """The position of the recorded call that ``call`` belongs to. Raises
        :class:`SessionError`."""
        calls, at = self.recorded, self.position
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
