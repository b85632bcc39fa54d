"""Decoders: outside of an edit their picture is the recorded one bit for bit. One that cannot be
captured runs as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..baseline import Baseline
from ..codegen.errors import CaptureError, GridError, SparsifyWarning
from ..editing import Edits
from ..runtime import copied, copy_of
from ..scope import Scope
from ..session import Recording, Session
from ..signature import Call
from .lattice import blended, for_frames, resized
from .trail import EditedTrail


class Decoded(NamedTuple):
    """A call of a decoder."""

    given: Tensor
    """Its first input."""
    output: Any


@dataclass
class Outputs:
    """The calls of a decoder, in order, of which nothing else is known."""

    calls: list[Decoded] = field(default_factory=list)

    def keep(self, call: Call, output: Any) -> Any:
        """Returns ``output``, to which its owner may write."""
        self.calls.append(Decoded(call.leaves[0].clone(), tree_map(copy_of, output)))
        return output


def first_decoded(
    sessions: Mapping[str, Session | Outputs], decoders: Iterable[str]
) -> tuple[str, Decoded] | None:
    """The name of a decoder that was called, and its first call; None if none was."""
    for name in sorted(decoders):
        own = sessions.get(name)
        if own is None or not own.calls:
            continue
        first = own.calls[0]
        if isinstance(first, Baseline):
            first = Decoded(first.inputs[0], first.outputs[0])
        return name, first
    return None


class RecordingOrDense(Recording):
    """The mode of a decoder in a run that is recorded."""

    def __init__(self, name: str, session: Session) -> None:
        super().__init__(session)
        self.name = name
        self.outputs: Outputs | None = None

    def forget(self) -> None:
        """Of pictures that were decoded between steps, to be looked at, nothing is kept."""
        self.session.calls.clear()
        if self.outputs is not None:
            self.outputs.calls.clear()

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        if self.outputs is None:
            try:
                return super().call(call, dense)
            except (CaptureError, GridError) as error:
                if self.session.calls:
                    raise
                warnings.warn(
                    f"the {self.name} runs densely in every edit: {error}",
                    SparsifyWarning,
                    stacklevel=2,
                )
                self.outputs = Outputs()
        return self.outputs.keep(call, dense())


def kept_of(mode: Recording) -> Session | Outputs:
    """What edits start from."""
    own = mode.outputs if isinstance(mode, RecordingOrDense) else None
    return own or mode.session


class DecoderEdits(Edits):
    """The mode of a decoder in an edited run, once all steps of its ``trail`` were made. An edit
    reaches further than its mask there: what it changes around it is computed, for what is inside
    depends on it, and then left out, but under policy "exact"."""

    trail: EditedTrail

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        if not self.trail.is_over:
            return dense()
        output = super().call(call, dense)
        if not self.scope.is_known or self.trail.is_exact:
            return output
        recorded = self.recorded[self.position - 1].outputs
        leaves, spec = tree_flatten(output)
        pairs = zip(leaves, recorded, strict=True)
        leaves = [_blended(self.scope.mask, new, old) for new, old in pairs]
        if self.kept is not None:
            self.kept[-1] = replace(self.kept[-1], outputs=tuple(copied(leaves)))
        return tree_unflatten(leaves, spec)


class DenseEdits:
    """The mode of a decoder that runs densely in an edited run."""

    def __init__(self, recorded: Outputs, scope: Scope, trail: EditedTrail) -> None:
        self._recorded, self._scope, self._trail = recorded, scope, trail
        self.kept = Outputs()

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        number, output = len(self.kept.calls), dense()
        if not self._trail.is_over:
            return output
        if self._scope.is_known and not self._trail.is_exact and number < len(self._recorded.calls):
            mask, old = self._scope.mask, self._recorded.calls[number].output
            output = tree_map(lambda new, known: _blended(mask, new, known), output, old)
        return self.kept.keep(call, output)


def _blended(mask: Tensor, new: Any, old: Any) -> Any:
    """Pictures [N, C, H, W] or videos ``new`` inside the mask, ``old`` outside."""
    if not isinstance(new, Tensor) or new.dim() < 4 or new.shape != old.shape:
        return new
    inside = for_frames(resized(mask, (new.shape[-2], new.shape[-1])), len(new))
    return blended(inside, new, old)
