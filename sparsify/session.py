"""Sessions: a sampler calls the model many times; record all calls, then edit all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .baseline import Baseline
from .codegen.errors import SessionError, SignatureError
from .plan import Plan
from .program import Program
from .signature import Call


class Host(Protocol):
    """What a session needs of the module that it belongs to."""

    def program(self, call: Call) -> Program: ...

    def update_call(self, baseline: Baseline, call: Call, plan: Plan) -> tuple[Any, Any]: ...

    def mode_of(self, mode: Recording | Editing) -> AbstractContextManager[None]: ...


@dataclass
class Session:
    """The calls of one sampling run, in order, each with its baseline."""

    module: Host
    calls: list[Baseline] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes kept of all calls."""
        return sum(baseline.nbytes for baseline in self.calls)

    def restrict(self, mask: Tensor | Plan) -> None:
        """Keeps of every call only what updates of ``mask`` need; see :meth:`Baseline.restrict`."""
        plan = mask if isinstance(mask, Plan) else Plan(mask)
        self.calls[:] = [baseline.restrict(plan) for baseline in self.calls]

    @contextmanager
    def editing(self, mask: Tensor | Plan) -> Iterator[Editing]:
        """Inside, the model's calls are updates of the recorded ones, in the recorded order.

        Raises :class:`SessionError` for a call that does not match its recorded one in shapes
        or in a scalar input (timestep, label), for one call too many, and on leaving for calls
        that were not made.
        """
        if not self.calls:
            raise SessionError("nothing was recorded: run the sampler inside recording() first")
        editing = Editing(self, mask if isinstance(mask, Plan) else Plan(mask))
        with self.module.mode_of(editing):
            yield editing
        if editing.position != len(self.calls):
            raise SessionError(
                f"{len(self.calls)} calls were recorded but {editing.position} made while editing: "
                "run the sampler with the same number of steps"
            )


@dataclass
class Recording:
    """The mode of a module inside ``recording()``."""

    session: Session

    def call(self, call: Call) -> Any:
        output, baseline = self.session.module.program(call).record(call)
        self.session.calls.append(baseline)
        return output


@dataclass
class Editing:
    """The mode of a module inside ``editing(mask)``; ``position`` counts the calls made."""

    session: Session
    plan: Plan
    position: int = 0

    def call(self, call: Call) -> Any:
        number, calls = self.position, self.session.calls
        what = f"call {number + 1} of {len(calls)}"
        if number >= len(calls):
            raise SessionError(
                f"{what}: only {len(calls)} calls were recorded: use the same number of steps"
            )
        baseline = calls[number]
        try:
            baseline.program.signature.require(call.signature, what)
        except SignatureError as error:
            raise SessionError(str(error)) from None
        _same_scalars(baseline, call, what)
        output, _ = self.session.module.update_call(baseline, call, self.plan)
        self.position += 1
        return output


def _same_scalars(baseline: Baseline, call: Call, what: str) -> None:
    """Timesteps and labels must be the recorded ones; embeddings (a new prompt) may differ."""
    names = call.signature.names
    for name, old, new in zip(names, baseline.inputs, call.leaves, strict=True):
        if isinstance(old, Tensor) and old.dim() <= 1 and not torch.equal(old, new):
            raise SessionError(
                f"{what}: {name} is {new.tolist()} but {old.tolist()} was recorded: "
                "run the sampler with the same schedule"
            )
