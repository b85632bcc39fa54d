"""Watches a full run of a sampler: what its steps give, and whether it adds noise of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .codegen.errors import SessionError
from .forecast import Clock, picture_of
from .host import Host
from .passes.parts import Part
from .schedule import Schedule
from .signature import Call

_MOST_STEPS = 1024
_MOST_VALUES = 2**18
"""Taken of each tensor that a step gives, at fixed random places: they tell its changes."""
_REMEMBERED = 3
"""Steps that a solver may make the next one of."""
_NOISE = 1e-3
"""The share of a picture's energy that no solver without noise of its own explains."""


class Watching:
    """The mode of a full run: keeps what each step gave of the part ``reuse``."""

    def __init__(self, host: Host, reuse: Part, advance: Callable[[], None]) -> None:
        self._host, self._reuse, self._advance = host, reuse, advance
        self._clock = Clock(Schedule.every(1, _MOST_STEPS))
        self.times: list[float] = []
        self.first: Tensor | None = None
        """The first tensor that the run gave to the model."""
        self._runs: list[dict[tuple[int, int], list[Tensor]]] = []
        self._terms: deque[list[Tensor]] = deque(maxlen=_REMEMBERED)
        self._is_blind = reuse in ("output", "encoder")
        """Does what is left to compute read no picture?"""
        self._noise: tuple[float, int] = (0.0, 0)

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        step, number = self._clock.tick(call)
        if (step, number) == (0, 0):
            self._runs.append({})
            self._terms.clear()
        if len(self._runs) == 1 and number == 0:
            self.times.append(self._clock.time)
        picture = picture_of(call)
        if self.first is None and picture is not None:
            self.first = picture.clone()
        output, values = self._step(call, dense)
        if picture is not None and self._is_blind:
            self._look(step, number, picture, _floats(output))
        self._runs[-1][step, number] = [_some(x) for x in _floats(values)]
        self._advance()
        return output

    def _step(self, call: Call, dense: Callable[[], Any]) -> tuple[Any, Any]:
        """The output, and what is reused."""
        if self._reuse == "output":
            output = dense()
            return output, output
        return self._host.program(call, self._reuse).step(call, None)

    def values(self) -> Tensor:
        """float32 [steps, values]: of each step, what all runs and calls gave that all steps made.
        Each tensor counts alike, whatever its size and its scale.

        Raises :class:`SessionError` for runs of different lengths.
        """
        steps = range(len(self.times))
        columns = []
        for made in self._runs:
            if {step for step, _ in made} != set(steps):
                raise SessionError("`run` sampled several times with different numbers of steps")
            numbers = {number for step, number in made if step == len(steps) - 1}
            numbers &= {number for step, number in made if step == 0}
            for n in sorted(numbers):
                every = zip(*(made[step, n] for step in steps), strict=True)
                columns += [torch.stack(list(own)) for own in every]
        return torch.cat([own / own.norm().clamp(min=1e-30) for own in columns], 1)

    def require_no_noise(self) -> None:
        """Raises :class:`SessionError` if the sampler adds noise of its own, and what is reused
        does not read the picture, so that it could not take this noise away again."""
        share, step = self._noise
        if share > _NOISE:
            raise SessionError(
                f"the sampler adds noise before step {step} ({share:.1%} of the picture's energy), "
                f"of which {self._reuse!r} of an earlier step knows nothing: take a sampler that "
                "adds none (DDIM, DPM-Solver++, Euler), or reuse 'deep', which reads the picture"
            )

    def _look(self, step: int, number: int, picture: Tensor, outputs: Sequence[Tensor]) -> None:
        """How much of the picture no combination of earlier pictures and outputs explains."""
        picture = picture.float().cpu()
        if number == 0:
            known = [x for terms in self._terms for x in terms]
            share = _unexplained(picture[0], known)
            self._noise = max(self._noise, (share, step))
            self._terms.append([])
        self._terms[-1].append(picture[0])
        for output in outputs:
            if output.dim() == picture.dim():
                self._terms[-1].extend(output.float().cpu())


def _unexplained(picture: Tensor, terms: Sequence[Tensor]) -> float:
    """The energy of what is left of ``picture`` beside a sum of ``terms``, by its own, if that is
    as white as noise; else 0: clipped values are no noise."""
    alike = [x for x in terms if x.shape[1:] == picture.shape[1:]]
    if not alike:
        return 0.0
    channels = min(len(x) for x in (picture, *alike))  # others are masks, or variances
    own = picture[:channels]
    known = torch.stack([x[:channels].flatten() for x in alike], 1).double()
    if known.shape[1] * 4 > known.shape[0]:
        return 0.0
    target = own.flatten().double()
    fitted = torch.linalg.lstsq(known, target[:, None], driver="gelsd").solution
    left = (target - (known @ fitted)[:, 0]).view(own.shape)
    energy = float(left.square().mean())
    limit = 4 / left.numel() ** 0.5 + 0.05
    for dim in range(1, left.dim()):
        size = left.shape[dim]
        product = left.narrow(dim, 1, size - 1) * left.narrow(dim, 0, size - 1)
        if abs(float(product.mean())) > limit * energy:
            return 0.0
    return energy / max(float(target.square().mean()), 1e-30)


def _floats(tree: Any) -> list[Tensor]:
    leaves = tree_leaves(tree)
    return [x.detach() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _some(x: Tensor) -> Tensor:
    """float32, on the host: all of a small tensor, and always the same places of a larger one."""
    flat = x.flatten()
    if flat.numel() > _MOST_VALUES:
        made = torch.Generator().manual_seed(flat.numel())
        places = torch.randint(flat.numel(), (_MOST_VALUES,), generator=made)
        flat = flat[places.to(flat.device)]
    return flat.float().cpu()
