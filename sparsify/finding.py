"""The mask of an edit that only its prompt tells: found while the first steps run densely."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from .baseline import Baseline
from .changed_words import Words
from .codegen.errors import ConfigError
from .forecast import time_of
from .found_masks import difference_map, found_mask, scaled
from .passes.blend import by_site
from .runtime import Runtime
from .signature import Call

Way = Literal["latents", "attention", "reference"]
Find = Way | tuple[Way, ...]
"""How masks are found: where the new run's latents differ from the recorded ones, where the picture
attends to the words that changed, or where what the new run predicts is unlike the recorded
picture. Of several, what any of them marks."""


def ways_of(find: Find) -> tuple[Way, ...]:
    """Raises :class:`ConfigError`."""
    ways = (find,) if isinstance(find, str) else tuple(find)
    if not ways or not set(ways) <= set(get_args(Way)):
        known = ", ".join(map(repr, get_args(Way)))
        raise ConfigError(f"find={find!r}: one of {known}, or a tuple of these")
    return ways


@dataclass
class Finding:
    """What a run has changed of the recorded pictures in its first ``steps``."""

    steps: int
    margin: int
    ways: tuple[Way, ...] = ("latents",)
    words: tuple[Words, ...] = ()
    """Which words of each picture's prompt changed, if that is known."""
    differences: list[Tensor] = field(default_factory=list)
    """float [N, C, H, W] each: the picture that a step is given, less the recorded one."""
    attention: list[Tensor] = field(default_factory=list)
    """float [N, H, W] each, of the calls of the last step: what sites pay to changed words."""
    distance: Tensor | None = None
    """float [N, H, W]: how unlike the recorded picture is what the last step has predicted."""
    _time: float | None = None
    _is_other: bool = False
    """Had a call other inputs than its recorded one?"""

    @property
    def is_done(self) -> bool:
        return len(self.differences) > self.steps

    @property
    def is_at_last_step(self) -> bool:
        return len(self.differences) == self.steps

    def looks_at(self, call: Call) -> bool:
        """Is it the first call of a step that has something to tell?"""
        return not self.is_done and time_of(call) != self._time

    def is_unchanged(self, baseline: Baseline, call: Call) -> bool:
        """Were all calls so far the recorded ones?"""
        pairs = zip(call.leaves, baseline.inputs, strict=True)
        self._is_other = self._is_other or any(
            not torch.equal(new, old) if isinstance(new, Tensor) else new != old
            for new, old in pairs
        )
        return not self._is_other

    def look(self, call: Call, difference: Tensor) -> None:
        """Takes note of the picture that a step is given."""
        self._time = time_of(call)
        self.differences.append(difference)

    def mask(self) -> Tensor:
        """bool [N, H, W], on the host. Pictures that are as they were have none."""
        found = [found_mask(self._map(way), self.margin) for way in self.ways]
        is_other = self.differences[-1].flatten(1).any(1)
        return (reduce(Tensor.__or__, found) & is_other[:, None, None]).cpu()

    def _map(self, way: Way) -> Tensor:
        """float [N, H, W] in 0..1."""
        if way == "latents":
            return difference_map(self.differences[1:])
        if way == "attention":
            paid = torch.stack([self._for_items(own) for own in self.attention]).sum(0)
            return scaled(self._of_guidance(paid))
        assert self.distance is not None
        return scaled(self._for_items(self.distance))

    def _for_items(self, own: Tensor) -> Tensor:
        """[M, H, W] -> [N, H, W]: the halves of guidance one after the other, or their sum."""
        items = len(self.differences[-1])
        if len(own) > items:
            halves: Tensor = own.unflatten(0, (-1, items))
            return halves.sum(0)
        return own.repeat(items // len(own), 1, 1)

    def _of_guidance(self, own: Tensor) -> Tensor:
        """With the sum over the halves of guidance, of which only one reads the new words: they are
        one picture, and differ alike from the recorded one."""
        changes = self.differences[-1].flatten(1)
        alike = ((changes == change).all(1) for change in changes)
        return torch.stack([own[items].sum(0) for items in alike])


def difference(runtime: Runtime, baseline: Baseline, call: Call) -> Tensor:
    """float [N, C, H, W]: of the picture that a call is given, to the recorded one."""
    inputs = zip(runtime.sidecar.inputs, call.leaves, baseline.inputs, strict=True)
    spot, new, old = next(one for one in inputs if one[0] is not None and one[0].mask)
    assert spot is not None
    return by_site(spot.layout, new.detach().float() - old.float())
