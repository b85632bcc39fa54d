"""Writes the graphs of a program as a folder that runs without its model."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_leaves

from .baseline import Memory, in_own_memory, memory_of
from .codegen.ambient import as_captured
from .codegen.errors import ExportError
from .codegen.export import aoti, onnx, pt2
from .codegen.export.onnx import Stored
from .codegen.export.programs import Pure, program, pure
from .codegen.operators.operands import dtype_name
from .folder import (
    COMMITTED,
    FORMATS,
    WEIGHTS,
    FolderSignature,
    GraphFile,
    Input,
    Value,
    is_exported,
    write_signature,
)
from .hashed import replaced
from .passes.graphs import Constant, NamedGraph
from .passes.partition import attribute
from .passes.reuse import REUSE_CUTS
from .program import Program
from .schedule import Schedule
from .signature import Call
from .switching import with_numbers

_OF_SESSIONS = tuple(cut.name for cut in REUSE_CUTS if "_" in cut.name)
"""Graphs that a folder does not have: it samples by a schedule, and edits call by call."""
_SUFFIX = {"pt2": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}


def export_folder(
    sparse: Program,
    model: nn.Module,
    call: Call,
    path: Path,
    format: str,
    schedule: Schedule | None,
) -> None:
    """Writes the graphs for calls like this one, and the ``schedule`` of runs, to the folder
    ``path``.

    An exported folder there is replaced; if anything fails, ``path`` stays as it was.
    Raises :class:`ExportError`, and :class:`FolderError` for a path where no folder can be.
    """
    _require_possible(sparse, path, format)
    with replaced(path) as new, as_captured():
        _Exporter(sparse, model, call, format, schedule).write(new)


def _require_possible(sparse: Program, path: Path, format: str) -> None:
    if format not in FORMATS:
        raise ExportError(f"format={format!r}: one of {', '.join(FORMATS)}")
    if format == "onnx":
        onnx.require_installed()
    if sparse.device.type != "cpu":
        raise ExportError(f"the inputs are on {sparse.device}: export model and inputs on the CPU")
    if path.exists() and not is_exported(path):
        raise ExportError(
            f"{path} exists and is no exported folder, or has other files too: give another path"
        )


class _Exporter:
    """The graphs of one program, under the names by which they exchange values."""

    def __init__(
        self,
        sparse: Program,
        model: nn.Module,
        call: Call,
        format: str,
        schedule: Schedule | None,
    ) -> None:
        self._sparse, self._model, self._format = sparse, model, format
        self._schedule = schedule
        self._call = call = call.like(sparse.signature)
        constants, self._patterns = with_numbers(sparse.graphs["constants"])
        self._parts = {**sparse.graphs.parts, "constants": constants}
        self._weights, self._tensors = _weights(self._parts)
        self._names = _names(call, taken={"mask", *self._tensors})
        self._renamed = {f"input.{i}": name for i, name in enumerate(self._names)}
        whole = sparse.runtime.sidecar.reused  # without _OF_SESSIONS only dense steps give it
        self._sizes = {n: axis for n, axis in sparse.graphs.dynamic.items() if n not in whole}
        self._values = self._examples()

    def write(self, folder: Path) -> None:
        """All files of the folder."""
        functions = self._functions()
        used = {name for function in functions for name in function.weights}
        stored = _save(self._tensors, used, folder / WEIGHTS)
        graphs: dict[str, GraphFile] = {}
        for function in functions:
            file = folder / f"{function.name}{_SUFFIX[self._format]}"
            if self._format == "onnx":
                onnx.prepare(function)
            exported = program(function, self._values, self._dynamic(function))
            if function.name == "constants":  # in the formats of an exported program
                made = exported.module()(tuple(self._values[name] for name in function.weights))
                self._values.update(zip(function.outputs, made, strict=True))
            if self._format == "onnx":
                onnx.write(exported, function, file, folder / WEIGHTS, stored)
            elif self._format == "aoti":
                aoti.write(exported, function, file, self._values)
            else:
                pt2.write(exported, file)
            parts = function.inputs, function.weights, function.outputs
            graphs[function.name] = GraphFile(file.name, *parts)
        write_signature(folder, self._signature(graphs))

    def _examples(self) -> dict[str, Tensor]:
        """Every value by name, from the inputs of the call and some mask."""
        mask = torch.zeros(self._sparse.grid, dtype=torch.bool, device="cpu")
        mask[: (mask.shape[0] + 1) // 2, : (mask.shape[1] + 2) // 3] = True
        output, baseline = self._sparse.record(self._call)
        values: dict[str, Any] = {"mask": mask, **self._inputs()}
        values |= {f"output.{i}": leaf for i, leaf in enumerate(tree_leaves(output))}
        values["mask"] = mask = self._sparse.runtime.mask(mask)
        values |= self._sparse.runtime.operands(baseline, self._call, mask)
        if self._sparse.part is not None:
            made = self._sparse.step(self._call, None)[1]
            values |= zip(self._sparse.runtime.sidecar.reused, made, strict=True)
        values |= {_committed(name): value for name, value in baseline.values.items()}
        values |= self._tensors
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _inputs(self) -> dict[str, Any]:
        return dict(zip(self._names, self._call.leaves, strict=True))

    def _functions(self) -> list[Pure]:
        """The graphs that do something, and are no other one under a second name."""
        parts = dict(self._parts)
        if self._sparse.runtime.sidecar.dense_above >= 1 and self._schedule is None:
            del parts["dense"]
        for name in _OF_SESSIONS:
            parts.pop(name, None)
        if parts["again"] is parts["update"]:
            del parts["again"]
        if not parts["conditions"].inputs:
            del parts["conditions"]
        parts["record"] = _with_copies(parts["record"], self._sparse.graphs.copies)
        constants = parts["constants"]
        if self._format == "onnx":
            # onnxruntime computes constants when a session is made; elsewhere it is done once.
            del parts["constants"]
            parts = {n: _with_constants(part, constants) for n, part in parts.items()}
        return [self._pure(name, part) for name, part in parts.items() if part.outputs]

    def _pure(self, name: str, part: NamedGraph) -> Pure:
        inputs = [self._renamed.get(given, given) for given in part.inputs]
        outputs = [_committed(made) for made in part.outputs] if name == "commit" else part.outputs
        return pure(name, part.module, inputs, outputs, self._weights)

    def _dynamic(self, function: Pure) -> Mapping[str, int]:
        """The axes of unknown size; a commit takes no restricted baseline."""
        fixed = self._sparse.graphs.kept if function.name == "commit" else ()
        return {n: axis for n, axis in self._sizes.items() if n not in fixed}

    def _signature(self, graphs: dict[str, GraphFile]) -> FolderSignature:
        sparse, call = self._sparse, self._call
        parameters = inspect.signature(self._model.forward).parameters.values()
        crossing = {name for g in graphs.values() for name in (*g.inputs, *g.outputs)}
        given = {n for n, leaf in zip(self._names, call.leaves, strict=True) if _is_tensor(leaf)}
        exchanged = sorted((crossing | given) & set(self._values))
        config = {**asdict(sparse.config), "grids": dict(sparse.config.grids)}
        del config["backend"], config["passes"]
        if (dtype := sparse.config.baseline_dtype) is not None:
            config["baseline_dtype"] = dtype_name(dtype)
        outputs = sparse.graphs.outputs
        return FolderSignature(
            format=self._format,
            made_by={"sparsify": version("sparsify"), "torch": torch.__version__},
            config=config,
            parameters=tuple(
                (p.name, p.kind.name, p.default is not inspect.Parameter.empty) for p in parameters
            ),
            inputs=tuple(
                _input(path, name, leaf, spot.layout.grid if spot else None)
                for path, name, leaf, spot in zip(
                    call.signature.names,
                    self._names,
                    call.leaves,
                    sparse.graphs.inputs,
                    strict=True,
                )
            ),
            outputs=_structure(sparse.output_spec, map(_leaf, outputs)),
            values={name: self._value(name) for name in exchanged},
            graphs=graphs,
            weights=sparse.weights().content,
            sparse=self._patterns,
            schedule=None if self._schedule is None else self._schedule.to_json(),
            sidecar=sparse.runtime.sidecar,
        )

    def _value(self, name: str) -> Value:
        tensor = self._values[name]
        shape: list[int | None] = list(tensor.shape)
        if (axis := self._sizes.get(name)) is not None:
            shape[axis] = None
        return Value(tuple(shape), dtype_name(tensor.dtype))


def _with_copies(record: NamedGraph, copies: Mapping[str, str]) -> NamedGraph:
    """``record``, which also returns the values that are other ones until a commit."""
    graph = Graph()
    made: Any = graph.graph_copy(record.graph, {})
    values = dict(zip(record.outputs, made, strict=True))
    values |= {name: values[first] for name, first in copies.items()}
    graph.output(tuple(values.values()))
    module = GraphModule(record.module, graph)
    return replace(record, module=module, outputs=tuple(values))


def _committed(name: str) -> str:
    """Of a result of a commit, which may be what it was given: no graph has one name twice."""
    return name.replace("baseline.", COMMITTED)


def _with_constants(part: NamedGraph, constants: NamedGraph) -> NamedGraph:
    """``part``, which makes constants itself."""
    graph, copies = Graph(), dict[Node, Node]()
    made: Any = graph.graph_copy(constants.graph, {})
    by_attribute = dict(zip(map(attribute, constants.outputs), made, strict=True))
    for node in part.graph.nodes:
        if node.op == "get_attr" and node.target in by_attribute:
            copies[node] = by_attribute[node.target]
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    held = {**constants.attributes(), **part.attributes()}
    return replace(part, module=GraphModule(held, graph))


def _names(call: Call, taken: set[str]) -> list[str]:
    """One for each leaf of the call, fit for every format, and none that is ``taken``."""
    names: list[str] = []
    for path in call.signature.names:
        name = re.sub(r"\W+", "_", path).strip("_")
        while name in taken or name in names:
            name += "_"
        names.append(name)
    return names


def _weights(parts: Mapping[str, NamedGraph]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The name of every attribute that graphs read, the same for tied ones, and the tensors; those
    that the constants graph makes are not among these."""
    made = {attribute(name): name for name in parts["constants"].outputs}
    names: dict[str, str] = dict(made)
    tensors: dict[str, Tensor] = {}
    first: dict[Memory, str] = {}
    for part in parts.values():
        for name, tensor in part.attributes().items():
            if isinstance(tensor, Tensor) and name not in made:
                key = memory_of(tensor)
                names[name] = first.setdefault(key, name)
                tensors[first[key]] = tensor.detach()
    return names, tensors


def _save(tensors: Mapping[str, Tensor], used: Iterable[str], path: Path) -> dict[str, Stored]:
    """Writes the ``used`` tensors; returns where in the file each lies."""
    names = sorted(name for name in used if name in tensors)
    chosen = in_own_memory({name: tensors[name].contiguous() for name in names})
    save_file(chosen, path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # it was made for its owner alone
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    offsets = {name: header[name]["data_offsets"] for name in chosen}
    return {
        name: Stored(tuple(chosen[name].shape), 8 + length + start, end - start)
        for name, (start, end) in offsets.items()
    }


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _input(path: str, name: str, leaf: Any, grid: tuple[int, int] | None) -> Input:
    if isinstance(leaf, Tensor):
        return Input(path, name, None, grid)
    return Input(path, None, repr(leaf), None)


def _leaf(output: str | Constant) -> dict[str, Any]:
    return {"value": output} if isinstance(output, str) else {"constant": output.value}


def _structure(spec: TreeSpec, leaves: Iterator[dict[str, Any]]) -> Any:
    """The containers of the outputs, as :class:`.folder.FolderSignature` describes them."""
    if spec.is_leaf():
        return next(leaves)
    children = [_structure(child, leaves) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: children}
    keys = getattr(spec.type, "_fields", spec.context)
    if not isinstance(keys, list | tuple) or len(keys) != len(children):
        raise ExportError(
            f"the model returns a {spec.type.__name__}, whose parts have no names: "
            "return a tensor, tuple, list or dict"
        )
    kind = "dict" if spec.type is dict else "named"
    return {kind: dict(zip(map(str, keys), children, strict=True))}
