"""What stands behind one wrapped model: its programs, and where its calls go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

from torch import nn
from torch.utils._pytree import tree_unflatten

from .ambient import Ambient
from .baseline import Baseline, require_baseline
from .changes import Drops
from .codegen.errors import BaselineError, MaskError
from .config import SparsifyConfig
from .host import Mode
from .masks import MaskLike, fitted
from .passes.evaluate import Shared
from .passes.parts import Part
from .plan import Plan
from .program import Program
from .runtime import Reused
from .signature import Call, Signature, bind
from .wrapping import view

Key = tuple[Signature, Ambient, Part | None]

MOST_PROGRAMS = 8
"""Kept of one model; of more, the one that was not used for longest is dropped."""


class Engine:
    """The programs of ``model``: ``whole`` itself, or as much of it as ``method`` computes.

    Safe to use from several threads: each has sessions of its own, and a program is made once.
    """

    def __init__(self, whole: nn.Module, config: SparsifyConfig, method: str) -> None:
        self.whole, self.method = whole, method
        self.model = whole
        if method != "forward":
            self.model = view(whole, (type(whole),), {"forward": getattr(type(whole), method)})
        self.config = config
        self.last: tuple[Program, Plan | None] | None = None
        """What reports are of."""
        self._drops = Drops(is_told=not config.warn_dropped)
        self._programs: OrderedDict[Key, Program] = OrderedDict()
        self._by_key: WeakValueDictionary[str, Program] = WeakValueDictionary()
        self._retired: dict[str, str] = {}
        """What happened to the model after a program, by its key, was made."""
        self._resets, self._shared = 0, Shared()
        self._parts: dict[Part | None, None] = {None: None}
        """What steps have reused so far."""
        self._making = RLock()
        self._mode: ContextVar[Mode | None] = ContextVar("mode", default=None)

    def call(self, dense: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Inside a session a recorded or an edited call, else the ``dense`` one."""
        mode = self._mode.get()
        if mode is None:
            return dense()

        def alone() -> Any:
            with self.mode_of(None):
                return dense()

        return mode.call(self.bind(args, kwargs), alone)

    @contextmanager
    def mode_of(self, mode: Mode | None) -> Iterator[None]:
        """Inside, calls of this context go to ``mode``; None: to the model."""
        token = self._mode.set(mode)
        try:
            yield
        finally:
            self._mode.reset(token)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return bind(self.model, args, kwargs)

    def program(self, call: Call, part: Part | None = None) -> Program:
        """The rewritten model for calls like this one, made at the first; with graphs for the reuse
        of a ``part``."""
        ambient, form = Ambient.now(call.leaves), call.with_tensors.signature
        with self._making:
            self._parts[part] = None
            known = self._programs.get((form, ambient, part))
            known = known or self._programs.get((call.signature, ambient, part))
            if known is None or known.is_stale:
                if known is not None:
                    self._retired[known.key] = str(known.retired)
                made = self._made(call, ambient, part)
                self._retired.pop(made.key, None)
                self._by_key[made.key] = known = made
            self._keep(known)
        self.last = known, None
        return known

    def _made(self, call: Call, ambient: Ambient, part: Part | None) -> Program:
        form = call.with_tensors.signature
        alike = [p for p in self._programs.values() if p.form == form]
        # Whether its numbers can be tensors is found out once for a form of calls.
        may_be_tensors = all(program.signature == form for program in alike)
        same = (p for p in alike if p.ambient == ambient and p.signature in (form, call.signature))
        canonical = next((p.canonical for p in same if not p.is_stale), None)
        options = self._shared, may_be_tensors, self._resets, part, canonical
        return Program(self.model, self.config, call, ambient, *options)

    def _keep(self, program: Program) -> None:
        """As the one that was used last."""
        key = program.signature, program.ambient, program.part
        self._programs[key] = program
        self._programs.move_to_end(key)
        while len(self._programs) > MOST_PROGRAMS:
            self._programs.popitem(last=False)

    def refresh(self) -> None:
        """Takes the weights for others than before."""
        with self._making:
            self._resets += 1
            for program in self._by_key.values():
                program.refresh()

    def reset(self) -> None:
        """Forgets all programs; what was recorded with them is refused."""
        with self._making:
            self._resets += 1
            self._programs.clear()
            self._by_key.clear()
        self.last = None

    def plan(self, mask: MaskLike | None) -> Plan:
        if self.last is None:
            raise MaskError("record a run first: the grids are known from it")
        plan = Plan(mask)
        program = self._fit_for(plan, self.last[0])
        program.plan(plan)
        self.last = program, plan
        return plan

    def _fit_for(self, plan: Plan, last: Program) -> Program:
        """The program used last for which the mask is fit; ``last`` if there is none."""
        for program in (last, *reversed(self._programs.values())):
            with suppress(MaskError):
                fitted(plan.mask, program.grid, program.runtime.sidecar.batch)
                return program
        return last

    def update(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool = False
    ) -> tuple[Any, Baseline | None]:
        """Raises :class:`SignatureError`, :class:`BaselineError`, :class:`MaskError`."""
        program, call = self._looked_at(baseline, call, plan)
        result = program.update(baseline, call, plan, commit)
        self.last = program, plan
        return result

    def update_step(
        self,
        baseline: Baseline,
        call: Call,
        plan: Plan,
        taken: Reused | None,
        commit: bool = False,
    ) -> tuple[Any, Reused, Baseline | None]:
        """The same of a step that reuses a part; see :meth:`.Program.update_step`."""
        program, call = self._looked_at(baseline, call, plan)
        result = program.update_step(baseline, call, plan, taken, commit)
        self.last = program, plan
        return result

    def _looked_at(self, baseline: Baseline, call: Call, plan: Plan) -> tuple[Program, Call]:
        """The program for an update, and the call as it takes it; warns of what the mask drops."""
        program = self.program_of(baseline)
        call = call.like(baseline.signature)
        baseline.require_call(call, self.config.any_step)
        with program.as_captured():
            self._drops.look(program.runtime, baseline, call, plan)
        return program, call

    def restrict(self, baseline: Baseline, plan: Plan) -> Baseline:
        return self.program_of(baseline).restrict(baseline, plan)

    def program_of(self, baseline: Baseline) -> Program:
        """The program that recorded ``baseline``, made again if need be.

        Raises :class:`BaselineError` if this model does not give it any more, or never did.
        """
        require_baseline(baseline)
        found = self._by_key.get(baseline.key)
        if found is not None:
            return found
        if reason := self._retired.get(baseline.key):
            raise BaselineError(f"{reason} after this baseline was recorded: record again")
        args, kwargs = tree_unflatten(baseline.inputs, baseline.signature.spec)
        call = self.bind(args, kwargs)
        made = (self.program(call, part) for part in self._parts)
        program = next((program for program in made if program.key == baseline.key), None)
        if program is None:
            raise BaselineError(
                "this baseline was recorded by another model, with another configuration or under "
                "other settings of torch (autocast, dtypes): record again"
            )
        return program
