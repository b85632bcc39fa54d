"""Editing a recorded run: its calls are updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from .attention import attention_to_changes
from .baseline import Baseline
from .changes import changed
from .codegen.errors import ConfigError, SessionError, SignatureError, SparsifyWarning
from .deferred import Make, deferred
from .finding import Finding, difference
from .forecast import Forecaster, steps_of
from .host import Host
from .masks import fitted
from .plan import Plan
from .program import Program
from .run_report import RunReport
from .runtime import copied, copy_of
from .schedule import Schedule
from .scope import SAME_SITES, Arrangement, Scope
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
        scope: Scope,
        schedule: Schedule | None = None,
        kept: list[Baseline] | None = None,
        sites: Arrangement = SAME_SITES,
        first_step: int = 0,
    ) -> None:
        """The calls of the edited run are added to those ``kept``; ``sites`` says how those of the
        scope lie in the model, which is first called at ``first_step`` of the run."""
        self.host, self.recorded, self.position, self.kept = host, recorded, 0, kept
        self.scope, self._sites, self._first_step = scope, sites, first_step
        self.forecaster = None if schedule is None else Forecaster(schedule)
        self._made, self._whole, self._skipped = 0, set[int](), set[int]()
        """How many calls there were, and the numbers of those that ran the model whole, and not at
        all."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.position} of {len(self.recorded)} calls made>"

    @property
    def mask(self) -> Tensor:
        """bool [H, W] or [N, H, W]: where the run is edited. Raises :class:`SessionError` before it
        is found."""
        return self.scope.mask

    def report(self) -> RunReport:
        """What the run computed of the model, so far."""
        number = max(self.position - 1, 0)
        program = self.host.program_of(self.recorded[number])
        calls = [(step, True) for step in range(self._made)]
        schedule = Schedule.every(1, max(self._made, 1))
        if self.forecaster is not None:
            late = self._made - len(self.forecaster.calls)
            calls[late:], schedule = self.forecaster.calls, self.forecaster.schedule
        call, others = program.runtime.report(self._plan(number)), (self._whole, self._skipped)
        return RunReport(call, schedule, tuple(calls), *map(frozenset, others))

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        number, calls = self._twin(call), self.recorded
        baseline = calls[number]
        call = replace(call.like(baseline.signature), what=f"call {number + 1} of {len(calls)}")
        if self._sites.is_stepped and self.scope.start and self._steps[number] < self.scope.start:
            output, new = self._as_recorded(baseline)
        else:
            output, new = self._edited(number, call, dense)
        if self.kept is not None and new is not None:
            if not self.position:  # what comes before a late start is as it was
                self.kept[:] = calls[:number]
            self.kept.append(new)
        self.position, self._made = number + 1, self._made + 1
        return output

    @property
    def _commits(self) -> bool:
        return self.kept is not None

    @property
    def _defers(self) -> bool:
        """Are baselines made when they are read? What a store keeps is made at once, for it needs
        no memory."""
        return type(self.kept) is list

    @cached_property
    def _steps(self) -> list[int]:
        steps = steps_of([(one.signature, one.inputs) for one in self.recorded])
        return [self._first_step + step for step in steps]

    def _as_recorded(self, baseline: Baseline) -> Edited:
        self._skipped.add(self._made)
        spec = self.host.program_of(baseline).output_spec
        return tree_unflatten(copied(baseline.outputs), spec), baseline

    def _edited(self, number: int, call: Call, dense: Callable[[], Any]) -> Edited:
        """The update; where the schedule says so, from a forecast."""
        baseline, scope = self.recorded[number], self.scope
        program = self.host.program_of(baseline)
        self._find(program, baseline, call)
        if scope.is_known and scope.takes_recorded and program.config.policy != "exact":
            masks = program.plan(self._plan(number)).masks
            call = call.of(program.runtime.edited_inputs(call.leaves, baseline.inputs, masks))
        if self.forecaster is None:
            return self._updated(number, call, dense)
        if self.forecaster.schedule.part is not None:
            return self.forecaster.run(call, *self._by_part(program, number, call))

        def key() -> tuple[Edited, list[Any]]:
            edited = self._updated(number, call, dense)
            pairs = zip(tree_leaves(edited[0]), baseline.outputs, strict=True)
            return edited, [_minus(*pair) for pair in pairs]

        def reuse(changes: list[Any]) -> Edited:
            made = [_plus(*pair) for pair in zip(baseline.outputs, changes, strict=True)]
            if scope.finding is not None and scope.is_known:
                masks = program.plan(self._plan(number)).masks
                made = program.runtime.edited_outputs(made, baseline.outputs, masks)
            if self._commits:
                return program.forecast(call, made)
            return tree_unflatten(made, program.output_spec), None

        return self.forecaster.run(call, key, reuse)

    def _updated(self, number: int, call: Call, dense: Callable[[], Any]) -> Edited:
        baseline, finding = self.recorded[number], self.scope.finding
        program = self.host.program_of(baseline)
        if finding is not None and not self.scope.is_known:
            if finding.is_unchanged(baseline, call):
                return self._as_recorded(baseline)
            self._whole.add(self._made)
            if not self._commits:
                return dense(), None
            if not self._defers:
                return program.record(call)
            call, output = call.of(_own(call.leaves, baseline.inputs)), dense()
            later: Make = partial(_recorded, program, baseline, call)
            return output, deferred(baseline, call, tree_leaves(output), later)
        plan = self._with_changes(number, call)
        tables = program.plan(plan)
        if tables.is_empty:
            self._skipped.add(self._made)
        if not self._defers or baseline.restricted_to is not None:
            return self.host.update(baseline, call, plan, self._commits)
        output, _ = self.host.update(baseline, call, plan)
        if tables.is_empty:
            return output, baseline
        leaves = program.runtime.edited_inputs(call.leaves, baseline.inputs, tables.masks)
        call = call.of(_own(leaves, baseline.inputs))
        # A dense run reads no values, so it keeps those before it alive for nothing.
        source = replace(baseline, values={}) if tables.is_dense else baseline
        later = partial(_committed, program, source, call, plan)
        return output, deferred(baseline, call, tree_leaves(output), later)

    def _find(self, program: Program, baseline: Baseline, call: Call) -> None:
        """Where a step begins that is looked at; the last of them tells the mask."""
        finding = self.scope.finding
        if finding is None or not self._sites.is_stepped:
            return
        if finding.looks_at(call):
            self._look(finding, program, baseline, call)
        if finding.is_at_last_step and "attention" in finding.ways:
            paid = attention_to_changes(program, baseline, call, finding.words)
            if paid is not None:
                finding.attention.append(self._sites.picture(paid).mean(1))

    def _look(self, finding: Finding, program: Program, baseline: Baseline, call: Call) -> None:
        own = difference(program.runtime, baseline, call)
        finding.look(call, self._sites.picture(own))
        if not finding.is_done:
            return
        self.scope.find()
        if program.plan(self._plan_on(baseline)).is_dense:
            warnings.warn(
                f"the mask that was found has {self.mask.float().mean():.0%} of the sites, so that "
                "the run goes on densely inside of it: see `dense_above`",
                SparsifyWarning,
                stacklevel=2,
            )

    def _by_part(self, program: Program, number: int, call: Call) -> tuple[Key, Reuse]:
        """What key steps do, and the others."""
        assert self.forecaster is not None
        part, host = self.forecaster.schedule.part, self.host
        baseline, plan = self.recorded[number], self._plan(number)
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
            output, values, new = host.update_step(baseline, call, plan, None, self._commits)
            return (output, new), values

        def reuse(taken: list[Any]) -> Edited:
            output, _, new = host.update_step(baseline, call, plan, taken, self._commits)
            return output, new

        return key, reuse

    def _plan(self, number: int) -> Plan:
        """That of a recorded call."""
        is_stepped = self._sites.is_stepped and self.scope.has_steps
        step = self._steps[number] if is_stepped else None
        return self._plan_on(self.recorded[number], step)

    def _plan_on(self, baseline: Baseline, step: int | None = None) -> Plan:
        return self.scope.plan(self._sites, baseline.grid, baseline.shape[0], step)

    def _with_changes(self, number: int, call: Call) -> Plan:
        """Under policy "exact" of the mask and what the calls before have changed."""
        baseline, plan = self.recorded[number], self._plan(number)
        program = self.host.program_of(baseline)
        if program.config.policy != "exact":
            return plan
        found = self._changed(number, call)
        mask = fitted(plan.mask, baseline.grid, baseline.shape[0])
        return Plan(mask | found) if bool((found & ~mask).any()) else plan

    def _changed(self, number: int, call: Call) -> Tensor:
        """bool [H, W], or [N, H, W] if items have masks of their own: where inputs are new."""
        baseline = self.recorded[number]
        runtime = self.host.program_of(baseline).runtime
        found = changed(runtime, baseline, call)
        return found if runtime.sidecar.items > 1 else found.any(0)

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


def _recorded(program: Program, baseline: Baseline, call: Call) -> Baseline:
    """Of a call that ran the model whole, with the weights of its twin's ``baseline``."""
    program.require_current(baseline)
    return program.record(call)[1]


def _committed(program: Program, baseline: Baseline, call: Call, plan: Plan) -> Baseline:
    _, new = program.update(baseline, call, plan, commit=True)
    assert new is not None
    return new


def _own(new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """Inputs that their owner may write to, for us to keep; recorded ones where they are equal."""
    pairs = zip(new, old, strict=True)
    return [known if _is_known(own, known) else copy_of(own) for own, known in pairs]


def _is_known(new: Any, old: Any) -> bool:
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return False
    return new is old or (new.device.type == "cpu" and torch.equal(new, old))


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
