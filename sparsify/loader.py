"""Runs an exported folder: record, plan, update, without the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from .baseline import Baseline, require_baseline
from .changes import Drops
from .codegen.ambient import as_captured
from .codegen.errors import BaselineError, ConfigError, FolderError, SignatureError
from .codegen.export import aoti, onnx, pt2
from .codegen.export.pt2 import Run
from .codegen.nm.pattern import NM
from .codegen.operators.operands import dtype_name
from .folder import COMMITTED, FORMATS, WEIGHTS, FolderSignature, read_signature
from .forecast import Forecaster
from .masks import MaskLike
from .plan import Plan
from .report import Report
from .runtime import Runtime
from .schedule import Schedule
from .signature import Call, as_tensor, bind_to, is_number
from .state import Weights
from .switching import counted, fingerprint, numbers, switched

_READ: dict[str, Callable[[Path, Mapping[str, Tensor]], Run]] = {
    "pt2": lambda path, _: pt2.read(path),
    "onnx": onnx.read,
    "aoti": lambda path, _: aoti.read(path),
}
_CPU = torch.device("cpu")


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


class Loaded:
    """A folder's graphs behind the interface of :class:`sparsify.SparseModule`."""

    def __init__(self, folder: Path, signature: FolderSignature) -> None:
        self._folder = folder
        self.signature = signature
        self._names = {f"input.{i}": entry.name for i, entry in enumerate(signature.inputs)}
        self._graphs: dict[str, Run] = {}
        # onnxruntime reads the weights itself
        is_onnx = signature.format == "onnx"
        self._tensors: dict[str, Tensor] = {} if is_onnx else load_file(folder / WEIGHTS)
        self._take(signature.sparse)
        self._drops = Drops(is_told=not signature.config["warn_dropped"])
        self._last: Plan | None = None
        kind = inspect.Parameter
        self._parameters = inspect.Signature(
            [
                kind(name, getattr(kind, how), default=None if has_default else kind.empty)
                for name, how, has_default in signature.parameters
            ]
        )

    def __repr__(self) -> str:
        return f"<Loaded {self._folder}: {self.signature.format}>"

    @property
    def layers(self) -> dict[str, NM]:
        """What sparse weights keep now, by layer."""
        return dict(self._patterns)

    def use(self, n: int, *, layers: str | Sequence[str] | None = None) -> None:
        """Keeps ``n`` of M inputs from now on, of the same dense weights, in all layers that are
        sparse or in those that names match, as file names are matched. M, and how many outputs
        share the choice, are those of the export; ``n = M`` are the dense weights, bit for bit.

        A baseline that was recorded before is refused. Raises :class:`ConfigError`, and
        :class:`FolderError` for a folder of ONNX models, which are read again, that has changed.
        """
        patterns = switched(self._patterns, n, layers)
        if self.signature.format == "onnx" and read_signature(self._folder) != self.signature:
            raise FolderError(f"{self._folder} was exported again: load it again")
        self._take(patterns)

    def _take(self, patterns: Mapping[str, NM]) -> None:
        """Opens what these change, and makes constants of them."""
        signature, given, graphs = self.signature, numbers(patterns), dict(self._graphs)
        for name, graph in signature.graphs.items():
            changed = {key: given[key] for key in graph.weights if key in given}
            if name not in graphs or (changed and signature.format == "onnx"):
                path = self._folder / graph.file
                graphs[name] = _READ[signature.format](path, changed)
        self._graphs = graphs
        self._tensors |= {} if signature.format == "onnx" else given
        with as_captured():
            self._tensors |= self._run("constants", {})
        content = fingerprint(signature.weights, signature.sparse, patterns)
        self._patterns, self._weights = patterns, Weights(content, None)
        sidecar = counted(signature.sidecar, patterns)
        self._runtime = Runtime(sidecar, self._run, _CPU, lambda: self._weights.content)

    def record(self, *args: Any, **kwargs: Any) -> tuple[Any, Baseline]:
        """The model's output and the baseline to update from. Raises :class:`SignatureError`."""
        with as_captured():
            outputs, baseline = self._runtime.record(self._bound(args, kwargs), self._weights)
        return self._built(outputs), baseline

    def plan(self, mask: MaskLike | None = None) -> Plan:
        """What depends on ``mask`` alone, as :mod:`sparsify.masks` takes it.

        Raises :class:`MaskError`.
        """
        self._last = plan = Plan(mask)
        with as_captured():
            self._runtime.plan(plan)
        return plan

    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: MaskLike | Plan | None = None,
        commit: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As :meth:`sparsify.SparseModule.update`.

        Raises :class:`SignatureError`, :class:`BaselineError`, :class:`MaskError`.
        """
        self._require_own(baseline)
        call, self._last = self._bound(args, kwargs), Plan.of(mask)
        baseline.require_call(call, self.signature.config["any_step"])
        with as_captured():
            self._drops.look(self._runtime, baseline, call, self._last)
            outputs, new = self._runtime.update(baseline, call, self._last, commit, self._weights)
        output = self._built(outputs)
        return (output, new) if commit else output

    @contextmanager
    def sampling(self, schedule: Schedule | None = None) -> Iterator[SampledFolder]:
        """Gives a function to sample with, which takes what the model did: key steps of the
        schedule run the model, the others are forecast. By default the schedule is the exported
        one. Raises :class:`ConfigError` if there is none, or for one that reuses another part."""
        yield SampledFolder(self, schedule)

    def restrict(self, baseline: Baseline, mask: MaskLike | Plan | None = None) -> Baseline:
        """As :meth:`sparsify.SparseModule.restrict`."""
        self._require_own(baseline)
        with as_captured():
            return self._runtime.restrict(baseline, Plan.of(mask))

    def report(self) -> Report:
        """Per node what is packed, dense, static or a fallback, for the last plan."""
        with as_captured():
            return self._runtime.report(self._last)

    def _require_own(self, baseline: Baseline) -> None:
        require_baseline(baseline)
        if baseline.key != self._runtime.sidecar.key:
            raise BaselineError(
                "this baseline was recorded by another model or folder: record with this one"
            )
        if baseline.weights.content != self._weights.content:
            raise BaselineError("this baseline was recorded with other weights: record again")

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call like the exported one, its tensors contiguous. Raises :class:`SignatureError`."""
        call = bind_to(self._parameters, "the exported model", args, kwargs)
        inputs, names = self.signature.inputs, call.signature.names
        if names != tuple(entry.path for entry in inputs):
            odd = ", ".join(sorted({entry.path for entry in inputs} ^ set(names)))
            raise SignatureError(f"the arguments differ from the exported ones ({odd or 'order'})")
        leaves = []
        for entry, leaf in zip(inputs, call.leaves, strict=True):
            if entry.name is None:
                _require(entry.path, repr(leaf), entry.constant)
            else:
                leaf = as_tensor(leaf, _CPU) if is_number(leaf) else leaf
                _require(entry.path, _describe(leaf), self._described(entry.name))
                leaf = leaf.detach().contiguous()
            leaves.append(leaf)
        return call.of(leaves)

    def _described(self, name: str) -> str:
        value = self.signature.values[name]
        return f"{value.dtype} {list(value.shape)}"

    def _run(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """A graph; one that does nothing was not exported."""
        graphs = self.signature.graphs
        name = "update" if name == "again" and name not in graphs else name
        if name not in graphs:
            return {}
        graph = graphs[name]
        named = {self._names.get(key, key): value for key, value in values.items()}
        given = [named[key] for key in graph.inputs]
        if self.signature.format != "onnx":
            given += [self._tensors[key] for key in graph.weights]
        names = (output.replace(COMMITTED, "baseline.") for output in graph.outputs)
        made = dict(zip(names, self._graphs[name](given), strict=True))
        shared = self.signature.sidecar.copies if name == "record" else ()
        return {name: value for name, value in made.items() if name not in shared}

    def _dense(self, call: Call) -> tuple[list[Any], list[Any]]:
        """The model's results, twice: to return, and to keep."""
        outputs = self._runtime.dense(call)
        return outputs, outputs

    def _built(self, outputs: Sequence[Any]) -> Any:
        """Copies: a graph may return what it was given."""
        values = {f"output.{i}": value for i, value in enumerate(outputs)}
        return _build(self.signature.outputs, values)


class SampledFolder(Forecaster):
    """The model of a folder, called by a sampler; see :meth:`Loaded.sampling`."""

    def __init__(self, folder: Loaded, schedule: Schedule | None) -> None:
        written = folder.signature.schedule
        own = None if written is None else Schedule.from_json(written)
        given = schedule or own
        if given is None:
            raise ConfigError("nothing was exported to sample by: export with a schedule")
        if own is None or given.reuse not in ("output", own.reuse):
            raise ConfigError(
                f"steps of this folder reuse {own.reuse if own else 'nothing'!r}, not "
                f"{given.reuse!r}: export with a schedule that does"
            )
        super().__init__(given)
        self._folder = folder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        folder, part = self._folder, self.schedule.part
        call = folder._bound(args, kwargs)
        with as_captured():
            if part is None:
                outputs = self.run(call, lambda: folder._dense(call), lambda made: made)
            else:
                step = folder._runtime.step
                outputs = self.run(
                    call, lambda: step(call, None), lambda taken: step(call, taken)[0]
                )
        return folder._built(outputs)


def _build(structure: Any, values: Mapping[str, Any]) -> Any:
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
