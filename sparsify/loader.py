"""Runs an exported folder: record, plan, update, without the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from .codegen.ambient import as_captured
from .codegen.errors import BaselineError, FolderError, SignatureError
from .codegen.export import aoti, onnx, pt2
from .folder import FORMATS, WEIGHTS, FolderSignature, GraphFile, dtype_name, read_signature
from .masks import MaskLike, as_mask, fitted, no_site_follows
from .signature import as_tensor, bind_to, is_number
from .words import size_of

_READ = {"pt2": pt2.read, "onnx": onnx.read, "aoti": aoti.read}
_CPU = torch.device("cpu")
Values = dict[str, Tensor]


def load(path: str | Path) -> Loaded:
    """The graphs in a folder that ``sparse.export`` wrote, in any of its formats.

    Every file is checked against the hashes in ``signature.json``, and nothing is unpickled;
    an "aoti" folder is native code, so load only what you trust. Raises :class:`FolderError`.
    """
    folder = Path(path)
    signature = read_signature(folder)
    if signature.format not in FORMATS:
        raise FolderError(f"{folder} has the unknown format {signature.format!r}: export again")
    return Loaded(folder, signature)


class Outputs(dict[str, Any]):
    """A model's output of named parts: ``outputs.sample`` and ``outputs["sample"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedBaseline:
    """A recorded run of a loaded folder. Never changed."""

    owner: Loaded
    inputs: Values
    values: Values
    """What updates read, and the outputs."""

    def __repr__(self) -> str:
        return f"<LoadedBaseline of {self.owner}: {size_of(self.nbytes)} kept>"

    @property
    def nbytes(self) -> int:
        """Bytes kept for updates."""
        return sum(tensor.nbytes for tensor in self.values.values())


@dataclass(frozen=True, eq=False)
class LoadedPlan:
    """The tables of a mask, for a loaded folder."""

    owner: Loaded
    tables: Values = field(repr=False)
    is_empty: bool


class Loaded:
    """A folder's graphs behind the interface of :class:`sparsify.SparseModule`."""

    def __init__(self, folder: Path, signature: FolderSignature) -> None:
        self._folder = folder
        self.signature = signature
        read = _READ[signature.format]
        self._run = {name: read(folder / graph.file) for name, graph in signature.graphs.items()}
        # onnxruntime reads the weights itself
        self._weights: Values = {}
        if signature.format != "onnx":
            self._weights = load_file(folder / WEIGHTS)
        if "arrange" in self._run:
            self._weights |= self._call("arrange", {})
        kind = inspect.Parameter
        self._parameters = inspect.Signature(
            [
                kind(name, getattr(kind, how), default=None if has_default else kind.empty)
                for name, how, has_default in signature.parameters
            ]
        )

    def __repr__(self) -> str:
        return f"<Loaded {self._folder}: {self.signature.format}>"

    def record(self, *args: Any, **kwargs: Any) -> tuple[Any, LoadedBaseline]:
        """The model's output and the baseline to update from. Raises :class:`SignatureError`."""
        inputs = self._bound(args, kwargs)
        # What is kept may be views of the inputs, which the caller may write to.
        copies = {name: value.clone() for name, value in inputs.items()}
        values = self._call("record", copies)
        return self._outputs(values), LoadedBaseline(self, copies, values)

    def plan(self, mask: MaskLike | None = None) -> LoadedPlan:
        """What depends on ``mask`` alone, which :mod:`sparsify.masks` describes.

        Raises :class:`MaskError`.
        """
        own = fitted(as_mask(mask), self.signature.grid, self.signature.batch)
        tables: Values = {}
        if "plan" in self._run:
            has_items = len(self.signature.values["mask"].shape) > 2
            own = own if has_items or own.dim() == 2 else own.any(0)
            items = (self.signature.batch,) if has_items else ()
            own = own.expand(*items, *self.signature.grid).contiguous()
            tables = self._call("plan", {"mask": own})
        return LoadedPlan(self, tables, not bool(own.any()))

    def update(
        self,
        baseline: LoadedBaseline,
        *args: Any,
        mask: MaskLike | LoadedPlan | None = None,
        **kwargs: Any,
    ) -> Any:
        """The output for edited inputs, computed where ``mask`` and its surroundings are.

        Raises :class:`SignatureError`, :class:`BaselineError`, :class:`MaskError`.
        """
        if baseline.owner is not self:
            raise BaselineError("this baseline was recorded by another folder: record with this")
        inputs = self._bound(args, kwargs)
        plan = mask if isinstance(mask, LoadedPlan) else self.plan(mask)
        if plan.owner is not self:
            raise BaselineError("this plan was made by another folder: make it with this one")
        same = self._same_conditions(baseline, inputs)
        if plan.is_empty:
            if not (self.signature.only_grids or same):
                raise no_site_follows()
            return self._outputs(baseline.values)
        conditions: Values = {}
        if not same and "conditions" in self._run:
            conditions = self._call("conditions", baseline.values | inputs)
        return self._outputs(
            self._call("update", baseline.values | conditions | plan.tables | inputs)
        )

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
        """The tensors of a call by name, contiguous. Raises :class:`SignatureError`."""
        call = bind_to(self._parameters, "the exported model", args, kwargs)
        inputs, names = self.signature.inputs, call.signature.names
        if names != tuple(entry.path for entry in inputs):
            odd = ", ".join(sorted({entry.path for entry in inputs} ^ set(names)))
            raise SignatureError(f"the arguments differ from the exported ones ({odd or 'order'})")
        values: Values = {}
        for entry, leaf in zip(inputs, call.leaves, strict=True):
            if entry.name is None:
                _require(entry.path, repr(leaf), entry.constant)
            else:
                leaf = as_tensor(leaf, _CPU) if is_number(leaf) else leaf
                _require(entry.path, _describe(leaf), self._described(entry.name))
                values[entry.name] = leaf.detach().contiguous()
        return values

    def _described(self, name: str) -> str:
        value = self.signature.values[name]
        return f"{value.dtype} {list(value.shape)}"

    def _same_conditions(self, baseline: LoadedBaseline, inputs: Values) -> bool:
        """Are the inputs that an edit leaves alone the recorded ones?"""
        fixed = [e.name for e in self.signature.inputs if e.name and e.grid is None]
        return all(torch.equal(baseline.inputs[name], inputs[name]) for name in fixed)

    def _call(self, name: str, values: Mapping[str, Tensor]) -> Values:
        graph: GraphFile = self.signature.graphs[name]
        given = [values[key] for key in graph.inputs]
        if self._weights or name == "arrange":
            given += [self._weights[key] for key in graph.weights]
        with as_captured():
            results: Sequence[Tensor] = self._run[name](given)
        return dict(zip(graph.outputs, results, strict=True))

    def _outputs(self, values: Values) -> Any:
        return _build(self.signature.outputs, values)


def _build(structure: Any, values: Values) -> Any:
    """The containers that ``FolderSignature.outputs`` describes, with copies of the tensors."""
    ((kind, content),) = structure.items()
    if kind == "value":
        return values[content].clone()
    if kind == "constant":
        return content
    if kind in ("tuple", "list"):
        parts = [_build(part, values) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    built = {key: _build(part, values) for key, part in content.items()}
    return built if kind == "dict" else Outputs(built)


def _describe(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    where = "" if leaf.device == _CPU else f" on {leaf.device}"
    return f"{dtype_name(leaf.dtype)} {list(leaf.shape)}{where}"


def _require(path: str, got: str, wanted: str | None) -> None:
    if got != wanted:
        raise SignatureError(f"{path} is {got} but {wanted} was exported: export such a call too")
