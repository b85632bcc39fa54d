"""What stands behind one wrapped model: its programs, and where its calls go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from threading import RLock
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.utils._pytree import tree_unflatten

from .ambient import Ambient
from .baseline import Baseline, ProgramKey
from .changes import Drops
from .codegen.errors import BaselineError, MaskError
from .config import SparsifyConfig
from .masks import MaskLike
from .plan import Plan
from .program import Program
from .session import Editing, Recording
from .signature import Call, Signature, bind
from .wrapping import view

MOST_PROGRAMS = 8
"""Kept of one model; of more, the one that was not used for longest is dropped. Its baselines
still keep it."""


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
        self._programs: OrderedDict[tuple[Signature, Ambient], Program] = OrderedDict()
        self._made: WeakSet[Program] = WeakSet()
        self._making = RLock()
        self._mode: ContextVar[Recording | Editing | None] = ContextVar("mode", default=None)

    def call(self, dense: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Inside a session a recorded or an edited call, else the ``dense`` one."""
        mode = self._mode.get()
        return dense() if mode is None else mode.call(self.bind(args, kwargs))

    @contextmanager
    def mode_of(self, mode: Recording | Editing) -> Iterator[None]:
        """Sessions: inside, calls of this context go to ``mode``."""
        token = self._mode.set(mode)
        try:
            yield
        finally:
            self._mode.reset(token)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return bind(self.model, args, kwargs)

    def program(self, call: Call) -> Program:
        """The rewritten model for calls like this one, made at the first."""
        ambient, form = Ambient.now(call.leaves), call.with_tensors.signature
        with self._making:
            known = self._programs.get((form, ambient))
            known = known or self._programs.get((call.signature, ambient))
            if known is None or known.is_stale:
                # Whether its numbers can be tensors is found out once for a form of calls.
                alike = [p for p in self._programs.values() if p.form == form]
                may_be_tensors = all(program.signature == form for program in alike)
                known = Program(self.model, self.config, call, ambient, may_be_tensors)
                self._made.add(known)
            self._keep(known)
        self.last = known, None
        return known

    def _keep(self, program: Program) -> None:
        """As the one that was used last."""
        key = program.signature, program.ambient
        self._programs[key] = program
        self._programs.move_to_end(key)
        while len(self._programs) > MOST_PROGRAMS:
            self._programs.popitem(last=False)

    def refresh(self) -> None:
        """Takes the weights for others than before."""
        with self._making:
            for program in self._made:
                program.refresh()

    def reset(self) -> None:
        """Forgets all programs, and what was recorded with them."""
        with self._making:
            for program in self._made:
                program.retire("sparse.reset() was called")
            self._programs.clear()
        self.last = None

    def plan(self, mask: MaskLike | None) -> Plan:
        if self.last is None:
            raise MaskError("record a run first: the grids are known from it")
        program = self.last[0]
        plan = Plan(mask)
        program.plan(plan)
        self.last = program, plan
        return plan

    def update_call(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool = False
    ) -> tuple[Any, Baseline | None]:
        """An update for inputs that are known to match the baseline's."""
        program = baseline.program
        baseline.require(plan, commit)
        self._drops.look(baseline, call, plan)
        result = program.update(baseline, call, plan, commit)
        self.last = program, plan
        return result

    def own(self, baseline: Baseline) -> Baseline:
        """``baseline``, with its program if it comes from a copy or a file.

        Raises :class:`BaselineError` for one that another model recorded.
        """
        key: Any = baseline.program
        if isinstance(key, ProgramKey):
            inputs = tree_unflatten(baseline.inputs, key.signature.spec)
            program = self.program(self.bind(*inputs))
            if program.key != key:
                raise BaselineError(
                    "this baseline was recorded by another model, with another configuration or "
                    "under other settings of torch (autocast, dtypes): record again"
                )
            return replace(baseline, program=program)
        if baseline.program not in self._made:
            raise BaselineError("this baseline was recorded by another model: record with this one")
        return baseline
