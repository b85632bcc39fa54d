"""A recorded full run, and what is kept of it."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .codegen.errors import BaselineError, MaskError, SignatureError
from .signature import Call, Signature
from .state import Weights
from .words import leaves_of, sites_of, size_of

Memory = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
Origin = tuple["weakref.ref[Tensor]", int]
"""A tensor and the version that it had."""


def origin_of(leaf: Any) -> Origin | None:
    """None where only the values tell: a CPU reads them as fast, and some writes, as those to
    ``.data`` or through NumPy, count as no version. On CUDA reading them would wait for the device.
    """
    if not isinstance(leaf, Tensor) or leaf.device.type == "cpu" or leaf.is_inference():
        return None
    return weakref.ref(leaf), leaf._version


def is_origin(leaf: Tensor, origin: Origin | None) -> bool:
    """Is ``leaf`` that tensor, and not written to since?"""
    if origin is None:
        return False
    known, version = origin
    return known() is leaf and bool(leaf._version == version)


def distinct(values: Sequence[Tensor]) -> list[int]:
    """The bytes of each value that no earlier one shares."""
    seen: set[Memory] = set()
    sizes = []
    for tensor in values:
        own = memory_of(tensor)
        sizes.append(0 if own in seen else tensor.nbytes)
        seen.add(own)
    return sizes


def first_names(values: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each value the name of the first that is one tensor with it, which may be its own."""
    first = dict[Memory, str]()
    return {name: first.setdefault(memory_of(value), name) for name, value in values.items()}


def memory_of(tensor: Tensor) -> Memory:
    """Where it lies, and how: the same for two tensors that are one."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def in_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that lie in another one's memory: a file takes each by itself."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return apart


class Remote(Mapping[str, Tensor]):
    """Values that lie elsewhere. Each look at one fetches all: who reads several fetches once."""

    def __bool__(self) -> bool:
        """There are some; nothing is fetched to say so."""
        return True

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What they take, where they are in memory."""

    @abstractmethod
    def fetched(self) -> Mapping[str, Tensor]:
        """All of them, in memory, on the device that made them."""


@dataclass(frozen=True, eq=False, repr=False)
class Baseline:
    """A recorded full run: its outputs, and the values that updates read. Data that never changes;
    it can be copied, pickled, saved, and used by several threads."""

    key: str
    """Of the program that recorded it."""
    weights: Weights
    """The fingerprint of the model's weights then."""
    signature: Signature
    """Of the recorded call."""
    shape: tuple[int, int, int]
    """[N, H, W] of masks."""
    values: Mapping[str, Tensor]
    """Remembered maps, and conditions: what no edit reaches, which holds while the inputs that an
    edit leaves alone are these."""
    outputs: tuple[Any, ...]
    inputs: tuple[Any, ...]
    """Copies, for the caller may write to his."""
    origins: tuple[Origin | None, ...]
    """The caller's own, to know them again without reading them."""
    is_one_run: bool = True
    """All sites are of the recorded run: nothing was committed since."""
    is_forecast: bool = False
    """Made of what other steps gave: the outputs, and no values are kept; or values of a part, and
    those behind it are kept. Updates that are no such step run the dense model."""
    restricted_to: Tensor | None = None
    """The only mask that it still serves, on the host: of what updates read rows, these alone are
    left."""

    def __repr__(self) -> str:
        own = self.restricted_to
        only = "" if own is None else f", restricted to {sites_of(own)}"
        return f"<Baseline of {leaves_of(self.outputs)}: {size_of(self.nbytes)} kept{only}>"

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of masks."""
        return self.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes kept for updates."""
        if isinstance(self.values, Remote):
            return self.values.nbytes
        return sum(distinct(list(self.values.values())))

    def fetched(self) -> Mapping[str, Tensor]:
        """The values, in memory."""
        return self.values.fetched() if isinstance(self.values, Remote) else self.values

    def require(self, mask: Tensor, commit: bool = False) -> None:
        """Raises :class:`MaskError` if updates of ``mask`` are not served any more, and
        :class:`BaselineError` for commits to a restricted baseline."""
        if self.restricted_to is None:
            return
        if not torch.equal(self.restricted_to, mask):
            raise MaskError(
                "this baseline was restricted to another mask: update from the one that it was "
                "made of, or record again"
            )
        if commit:
            raise BaselineError("a restricted baseline cannot be committed to: update the full one")

    def require_call(self, call: Call, any_step: bool) -> None:
        """Raises :class:`SignatureError` unless ``call`` is of the recorded kind, and of the
        recorded step unless it may be of ``any_step``."""
        self.signature.require(call.signature, call.what)
        name = None if any_step else self.other_scalar(call)
        if name is not None:
            raise SignatureError(
                f"{call.what}: {name}, and outside the mask the picture is that of the recorded "
                "step: update from the baseline of the same step, or sparsify with any_step=True"
            )

    def other_scalar(self, call: Call) -> str | None:
        """Which timestep or label, an input of at most one axis, is not the recorded one."""
        known = zip(self.inputs, self.origins, call.signature.names, call.leaves, strict=True)
        for old, origin, name, new in known:
            if not isinstance(old, Tensor) or old.dim() > 1 or is_origin(new, origin):
                continue
            if not torch.equal(old, new):
                return f"{name} is {new.tolist()} but {old.tolist()} was recorded"
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Data alone."""
        weights = Weights(self.weights.content, None)  # how often it was said is this process's
        own = {"origins": (None,) * len(self.origins), "weights": weights}
        return {**vars(self), **own, "values": dict(self.fetched())}


def require_baseline(value: object) -> None:
    """Raises :class:`BaselineError` for anything else."""
    if not isinstance(value, Baseline):
        raise BaselineError(f"{type(value).__name__} is no baseline: give what record returned")
