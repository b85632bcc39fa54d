"""Steps that read no picture run in one batch, before the sampler asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .codegen.errors import ConfigError
from .forecast import clock_of, picture_of
from .host import Host
from .program import Program
from .runtime import Reused
from .schedule import Schedule
from .signature import Call, as_tensor, is_number


class Ahead:
    """Outputs of steps that were made together with an earlier one.

    Between two key steps a decoder reads what the key step gave, and the timestep; so these steps
    are one batch, of ``most`` steps (the parallel decoder of Faster Diffusion).
    """

    def __init__(self, host: Host, schedule: Schedule, most: int) -> None:
        """Raises :class:`ConfigError` for a schedule that knows no timesteps."""
        if schedule.part is None or schedule.timesteps is None:
            raise ConfigError(
                "steps can be made ahead if the schedule reuses a part of the model and knows its "
                "timesteps: schedule.for_timesteps(scheduler.timesteps)"
            )
        self._host, self._schedule, self._most = host, schedule, most
        self._times = schedule.timesteps
        self._made: dict[tuple[int, int], tuple[Call, Any]] = {}
        self._is_checked = False

    def forget(self) -> None:
        self._made.clear()

    def output(
        self,
        place: tuple[int, int],
        call: Call,
        program: Program,
        taken: Callable[[int], Reused],
    ) -> Any:
        """Of the call at ``place``; ``taken`` gives the reused values of a step."""
        step, number = place
        known, output = self._made.pop(place, (None, None))
        if known is not None and _alike(known, call):
            return output
        steps = self._together(step)
        if len(steps) == 1:
            return program.step(call, taken(step))[0]
        outputs = self._batch(steps, call, program, [taken(each) for each in steps])
        self._made |= {(s, number): (call, x) for s, x in zip(steps, outputs, strict=True)}
        return self._made.pop(place)[1]

    def _together(self, step: int) -> range:
        """The steps from ``step`` to be made in one batch: ``most``, or one alone. More sizes would
        each take a program of their own."""
        end = min(key for key in (*self._schedule.keys, self._schedule.steps) if key > step)
        return range(step, step + (self._most if step + self._most <= end else 1))

    def _batch(
        self, steps: range, call: Call, program: Program, taken: Sequence[Reused]
    ) -> list[Any]:
        """The output of each step. Raises :class:`ConfigError` where a batch is not the steps."""
        _require_no_picture(program)
        batch, leaves = program.runtime.sidecar.batch, list[Any]()
        clock = clock_of(call.signature, call.leaves)
        for place, leaf in enumerate(call.leaves):
            if place == clock:
                leaves.append(_times([self._times[step] for step in steps], leaf, batch))
            elif isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch:
                leaves.append(torch.cat([leaf] * len(steps)))
            else:
                leaves.append(leaf)
        whole = self._host.bind(*tree_unflatten(leaves, call.signature.spec))
        both = [torch.cat(own) for own in zip(*taken, strict=True)]
        output, _ = self._host.program(whole, self._schedule.part).step(whole, both)
        outputs = _split(output, len(steps))
        if not self._is_checked:
            _require_equal(program.step(call, taken[0])[0], outputs[0])
            self._is_checked = True
        return outputs


def _require_no_picture(program: Program) -> None:
    reuse = program.graphs["reuse"]
    spots = program.runtime.sidecar.inputs
    for node, name in reuse.named("input").items():
        if node.users and spots[int(name.removeprefix("input."))] is not None:
            raise ConfigError(
                f"steps that reuse {program.part!r} read the picture ({node.name}), which is not "
                "known ahead: reuse 'encoder', or leave ahead out"
            )


def _times(times: Sequence[float], leaf: Any, batch: int) -> Tensor:
    """One for each item of each step."""
    like = as_tensor(leaf, None) if is_number(leaf) else leaf
    return torch.tensor(times, device=like.device).to(like.dtype).repeat_interleave(batch)


def _split(output: Any, count: int) -> list[Any]:
    leaves, spec = tree_flatten(output)
    parts = [x.chunk(count) if isinstance(x, Tensor) else [x] * count for x in leaves]
    return [tree_unflatten(list(own), spec) for own in zip(*parts, strict=True)]


def _require_equal(alone: Any, together: Any) -> None:
    for one, other in zip(tree_leaves(alone), tree_leaves(together), strict=True):
        if isinstance(one, Tensor) and not (
            one.shape == other.shape and torch.allclose(one, other, rtol=1e-2, atol=1e-2)
        ):
            raise ConfigError(
                "a batch of several steps is not what these steps give one by one: the model does "
                "not keep the items of a batch apart, so leave ahead out"
            )


def _alike(one: Call, other: Call) -> bool:
    """Have both the same inputs, but for the timestep and the picture?"""
    clock, picture = clock_of(one.signature, one.leaves), picture_of(one)
    for place, (a, b) in enumerate(zip(one.leaves, other.leaves, strict=True)):
        if place == clock or a is picture or a is b:
            continue
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if a != b:
                return False
        elif a.is_cuda or not torch.equal(a, b):  # to look would wait for the device
            return False
    return True
