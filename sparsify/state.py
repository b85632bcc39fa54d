"""What a captured graph depends on and does not read as an input, and whether that still holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .attributes import Attributes
from .codegen.checksum import Memory


class Weights(NamedTuple):
    """A fingerprint of parameters and buffers, the same in every process."""

    content: str
    """A checksum of all bytes, shapes, strides and dtypes."""
    refreshes: int | None
    """None: content alone decides. How often somebody said that they are others than before."""

    def difference(self, now: Weights) -> str | None:
        """What happened, if weights are not these ``now``."""
        if self.refreshes not in (None, now.refreshes):
            return "sparse.refresh() or sparse.reset() was called"
        return None if self.content == now.content else "the model's weights changed"


class State:
    """The attributes and weights of a model, as they were when it was captured."""

    def __init__(
        self, model: nn.Module, refreshes: int = 0, reset: frozenset[int] = frozenset()
    ) -> None:
        """The values of tensors in ``reset``, known by identity, do not matter: each call of the
        model sets them again."""
        self._model = model
        self._attributes = Attributes(model)
        self._weights = Fingerprint((*model.parameters(), *model.buffers()))
        self._layout = self._weights.layout
        tensors = enumerate(self._attributes.tensors)
        self._reset = {number for number, tensor in tensors if id(tensor) in reset}
        self._constants = Fingerprint(self._read(self._attributes))
        self.constants = self._constants.content()
        """A checksum of the tensors that graphs have as constants."""
        self._refreshes = refreshes

    def change(self, whole: bool = False) -> str | None:
        """What a graph of the model would have to be captured again for, in words.

        That is everything but the contents of its parameters and buffers, which graphs share.
        """
        if not self._attributes.unchanged():
            attributes = Attributes(self._model)
            if name := self._attributes.difference(attributes):
                return name
            constants = Fingerprint(self._read(attributes))
        else:
            attributes, constants = self._attributes, self._constants
        if constants.content(whole) != self.constants:
            return "tensor attributes"
        self._attributes, self._constants = attributes, constants
        return None if self._weights.look() == self._layout else "weights"

    def _read(self, attributes: Attributes) -> list[Tensor]:
        """The tensors that a graph may have as constants."""
        return [t for i, t in enumerate(attributes.tensors) if i not in self._reset]

    def weights(self, whole: bool = False) -> Weights:
        """The contents of parameters and buffers now; with ``whole`` nothing is taken on trust."""
        return Weights(self._weights.content(whole), self._refreshes)

    @property
    def places(self) -> list[int]:
        """The addresses of parameters and buffers."""
        return self._weights.places

    def refresh(self) -> None:
        """Takes the weights for others than before, and reads everything again."""
        self._refreshes += 1
        self._weights.forget()
        self._constants.forget()


class Fingerprint:
    """The contents of ``tensors``: a checksum of all bytes, taken again when anything that is
    cheap to see has changed.

    That is, at each call: addresses, versions, and on CPUs a word of each 16 KiB. On other
    devices, which would have to be waited for, a write that counts no version (``w.data``,
    ``inference_mode``) is seen only where the whole is read.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._counted = [t for t in self._tensors if not t.is_inference()]
        self._stored = [part for tensor in self._tensors for part in _in_memory(tensor)]
        self._memory, self.places, self.layout = self._found()
        self._known: tuple[object, str] = (None, "")

    def content(self, whole: bool = False) -> str:
        """With ``whole`` all bytes are read, whatever seems to have changed."""
        self.look()
        versions = [tensor._version for tensor in self._counted]
        seen = self.places, versions, self._memory.sampled()
        before, content = self._known
        if whole or seen != before:
            described = repr((self.layout, self._memory.whole()))
            content = hashlib.sha256(described.encode()).hexdigest()
            self._known = seen, content
        return content

    def look(self) -> list[object]:
        """Where the tensors lie now; returns dtype, device, shape and strides of each."""
        if _addresses(self._stored) != self.places:
            self._memory, self.places, self.layout = self._found()
        return self.layout

    def forget(self) -> None:
        """Reads the whole at the next call."""
        self._known = None, ""

    def _found(self) -> tuple[Memory, list[int], list[object]]:
        """Where the tensors lie now."""
        layout: list[object] = [
            (str(t.dtype), str(t.device), tuple(t.shape), t.stride() if _is_strided(t) else None)
            for t in self._tensors
        ]
        return Memory(self._stored), _addresses(self._stored), layout


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _in_memory(tensor: Tensor) -> list[Tensor]:
    """Where ``tensor`` keeps its numbers: itself, what a wrapper holds, or nothing to be read."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _in_memory(getattr(tensor, name))]
    if isinstance(tensor, FakeTensor) or not _is_strided(tensor) or tensor.device.type == "meta":
        return []
    return [tensor]


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided
