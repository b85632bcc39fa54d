"""A recorded full run, and what is kept of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .ambient import Ambient
from .codegen.errors import BaselineError, MaskError, SignatureError
from .config import SparsifyConfig
from .masks import MaskLike
from .plan import Plan
from .signature import Call, Signature
from .state import Weights
from .words import leaves_of, sites_of, size_of

if TYPE_CHECKING:
    from .program import Program

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


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """The rows of a recorded value that the updates of one plan read."""

    values: Tensor
    sites: Tensor
    """int64 [R]: where they stand on axis ``dim``."""
    dim: int
    shape: torch.Size
    stride: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Rows: {len(self.sites)} on axis {self.dim} of {list(self.shape)}>"

    @staticmethod
    def of(value: Tensor, sites: Tensor, dim: int) -> Rows:
        return Rows(value.index_select(dim, sites), sites, dim, value.shape, value.stride())

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def expanded(self) -> Tensor:
        """The value, with anything where it is not read."""
        like = self.values
        full = torch.empty_strided(self.shape, self.stride, dtype=like.dtype, device=like.device)
        return full.index_copy_(self.dim, self.sites, like)


@dataclass(frozen=True)
class ProgramKey:
    """What a program is known by, in another process too."""

    signature: Signature
    ambient: Ambient
    config: SparsifyConfig
    graphs: str
    """A hash of those that make a baseline and read it."""

    def __deepcopy__(self, memo: Any) -> ProgramKey:
        return self  # never changed


def distinct(values: Sequence[Tensor | Rows]) -> list[int]:
    """The bytes of each value that no earlier one shares."""
    seen: set[int] = set()
    sizes = []
    for value in values:
        tensor = value.values if isinstance(value, Rows) else value
        start = tensor.data_ptr()
        sizes.append(0 if start in seen else tensor.nbytes)
        seen.add(start)
    return sizes


@dataclass(frozen=True, eq=False, repr=False)
class Baseline:
    """A recorded full run: its outputs, and the values that updates read. Never changed."""

    program: Program
    values: tuple[Tensor | Rows, ...]
    conditions: tuple[Tensor, ...]
    """What no edit reaches; holds while the inputs that an edit leaves alone are these."""
    outputs: tuple[Any, ...]
    inputs: tuple[Any, ...]
    """Copies, for the caller may write to his."""
    origins: tuple[Origin | None, ...]
    """The caller's own, to know them again without reading them."""
    weights: Weights
    is_one_run: bool = True
    """All sites are of the recorded run: nothing was committed since."""
    restricted_to: Tensor | None = None
    """The only mask that it still serves, on the host."""

    def __repr__(self) -> str:
        own = self.restricted_to
        only = "" if own is None else f", restricted to {sites_of(own)}"
        return f"<Baseline of {leaves_of(self.outputs)}: {size_of(self.nbytes)} kept{only}>"

    @property
    def nbytes(self) -> int:
        """Bytes kept for updates."""
        return sum(distinct((*self.values, *self.conditions)))

    def restrict(self, mask: MaskLike | Plan | None = None) -> Baseline:
        """This run for updates of one mask alone, in the memory that these need.

        Maps of which an update reads active sites and halos shrink to those; what it reads whole
        (keys and values) stays. Raises :class:`MaskError`.
        """
        plan = Plan.of(mask)
        self.require(plan)
        tables = self.program.plan(plan)
        if tables.is_dense:  # inputs and outputs are all that it reads
            nothing: dict[str, Any] = {"values": (), "conditions": ()}
            return replace(self, **nothing, restricted_to=tables.mask)
        shared: dict[tuple[int, ...], Tensor] = {}
        values = list(self.values)
        for index, (value, read) in enumerate(zip(values, self.program.graphs.reads, strict=True)):
            if read is None or isinstance(value, Rows):
                continue
            if read.tables not in shared:
                shared[read.tables] = torch.cat([tables.tables[i] for i in read.tables]).unique()
            values[index] = Rows.of(value, shared[read.tables], read.dim)
        return replace(self, values=tuple(values), restricted_to=tables.mask)

    def require(self, plan: Plan, commit: bool = False) -> None:
        """Raises :class:`MaskError` if updates of ``plan`` are not served any more, and
        :class:`BaselineError` for commits to a restricted baseline."""
        own = self.restricted_to
        if own is None:
            return
        if not torch.equal(own, self.program.plan(plan).mask):
            raise MaskError(
                "this baseline was restricted to another mask: update from the one that it was "
                "made of, or record again"
            )
        if commit:
            raise BaselineError("a restricted baseline cannot be committed to: update the full one")

    def require_call(self, call: Call, what: str, any_step: bool) -> None:
        """Raises :class:`SignatureError` unless ``call`` is of the recorded kind, and of the
        recorded step unless it may be of ``any_step``."""
        self.program.signature.require(call.signature, what)
        name = None if any_step else self.other_scalar(call)
        if name is not None:
            raise SignatureError(
                f"{what}: {name}, and outside the mask the picture is that of the recorded step: "
                "update from the baseline of the same step, or sparsify with any_step=True"
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
        """Data alone: a program is made anew where it is needed."""
        return {**vars(self), "program": self.key, "origins": (None,) * len(self.origins)}

    @property
    def key(self) -> ProgramKey:
        program: Any = self.program
        key: ProgramKey = program if isinstance(program, ProgramKey) else program.key
        return key

    def expanded(self) -> tuple[Tensor, ...]:
        """The values as the update graph takes them."""
        return tuple(v.expanded() if isinstance(v, Rows) else v for v in self.values)
