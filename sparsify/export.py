"""Writes the graphs of a program as a folder that runs without its model."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_leaves

from .codegen.ambient import as_captured
from .codegen.errors import ExportError
from .codegen.export import aoti, onnx, pt2
from .codegen.export.onnx import Stored
from .codegen.export.programs import Arranged, Pure, arranging, program, pure
from .folder import (
    FORMATS,
    WEIGHTS,
    FolderSignature,
    GraphFile,
    Input,
    Value,
    dtype_name,
    is_exported,
    write_signature,
)
from .passes.packed import Fold
from .program import Program
from .signature import Call

_SUFFIX = {"pt2": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}


def export_folder(sparse: Program, model: nn.Module, call: Call, path: Path, format: str) -> None:
    """Writes record, plan, update (and conditions) for calls like this one to the folder ``path``.

    An exported folder there is replaced; if anything fails, ``path`` stays as it was.
    Raises :class:`ExportError`.
    """
    _require_possible(sparse, path, format)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise ExportError(f"{path} cannot be made ({error.strerror}): give another path") from None
    with beside as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        with as_captured():
            _Exporter(sparse, model, call, format).write(new)
        _replace(path, new, Path(temporary) / "old")


def _replace(path: Path, new: Path, old: Path) -> None:
    """``new`` becomes ``path``; what stood there becomes ``old``."""
    if not path.exists():
        new.rename(path)
        return
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise


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

    def __init__(self, sparse: Program, model: nn.Module, call: Call, format: str) -> None:
        self._sparse, self._model, self._format = sparse, model, format
        self._call = call = sparse.own(call)
        self._weights, self._tensors = _weights(sparse.joint, sparse.graphs.folds)
        self._inputs = _names(call, taken={"mask", *self._tensors})
        graphs = sparse.graphs
        (outputs, kept, conditions), tables = _results(graphs.record), _results(graphs.plan)[0]
        self._made = {
            "output": tree_leaves(outputs),
            "baseline": kept,
            "condition": conditions,
            "table": tables,
        }
        arranged: Arranged = {
            fold.name: (tuple(self._weights[w] for w in fold.weights), fold.function, fold.args)
            for fold in graphs.folds
        }
        # onnxruntime computes constants when a session is made; elsewhere a program does, once.
        self._in_graph: Arranged = arranged if format == "onnx" else {}
        self._arranged: Arranged = {} if format == "onnx" else arranged
        self._weights |= {name: name for name in self._arranged}
        self._dynamic = {f"table.{i}" for i, grows in enumerate(graphs.dynamic) if grows}
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
            exported = program(function, self._values, self._dynamic)
            if function.name == "arrange":
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
        mask = self._sparse.mask(mask)
        graphs, leaves = self._sparse.graphs, self._call.leaves
        outputs, kept, conditions = graphs.record(*leaves)
        tables, _ = graphs.plan(mask)
        lists = tree_leaves(outputs), kept, conditions, tables
        values = {
            f"{kind}.{i}": value
            for kind, group in zip(self._made, lists, strict=True)
            for i, value in enumerate(group)
        }
        values |= {"mask": mask, **dict(zip(self._inputs, leaves, strict=True)), **self._tensors}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _functions(self) -> list[Pure]:
        """The graphs, in an order in which each can be exported; what nobody reads is left out."""
        graphs, made = self._sparse.graphs, self._made
        # There are no commits, so copies stay what they are copies of.
        numbers: dict[str, Sequence[int]] = {
            "table": range(len(made["table"])),
            "baseline": graphs.copies,
            "condition": range(len(made["condition"])),
        }
        given = [f"{kind}.{i}" for kind, own in numbers.items() for i in own]
        results = {"output": tree_leaves(_results(graphs.update))}
        update = self._pure("update", graphs.update, [*self._inputs, *given], results)
        results = {"condition": _results(graphs.conditions)}
        names = [*self._inputs, *(name for name in given if name.startswith("baseline."))]
        conditions = self._pure("conditions", graphs.conditions, names, results, update.inputs)
        read = {*update.inputs, *update.outputs, *conditions.inputs}
        of_record = {kind: made[kind] for kind in ("output", "baseline", "condition")}
        record = self._pure("record", graphs.record, self._inputs, of_record, read)
        plan = self._pure("plan", graphs.plan, ["mask"], {"table": made["table"]}, read)
        functions = [
            record,
            *([plan] if plan.outputs else ()),  # everything is computed whole
            *([conditions] if conditions.inputs else ()),  # otherwise conditions never change
            update,
        ]
        return [arranging(self._arranged), *functions] if self._arranged else functions

    def _pure(
        self,
        name: str,
        graph: GraphModule,
        inputs: list[str],
        results: Mapping[str, list[Any]],
        read: Container[str] | None = None,
    ) -> Pure:
        """``graph`` with results named by their kind; only those that are ``read``, if given."""
        outputs = {
            f"{kind}.{i}": node
            for kind, nodes in results.items()
            for i, node in enumerate(nodes)
            if isinstance(node, Node) and (read is None or f"{kind}.{i}" in read)
        }
        return pure(name, graph, inputs, outputs, self._weights, self._in_graph)

    def _signature(self, graphs: dict[str, GraphFile]) -> FolderSignature:
        sparse, call = self._sparse, self._call
        parameters = inspect.signature(self._model.forward).parameters.values()
        crossing = {name for g in graphs.values() for name in (*g.inputs, *g.outputs)}
        given = {n for n, leaf in zip(self._inputs, call.leaves, strict=True) if _is_tensor(leaf)}
        exchanged = sorted((crossing | given) - set(self._weights))
        config = {**asdict(sparse.config), "grids": dict(sparse.config.grids)}
        del config["backend"]
        if (dtype := sparse.config.baseline_dtype) is not None:
            config["baseline_dtype"] = dtype_name(dtype)
        leaves = (_leaf(i, leaf) for i, leaf in enumerate(self._made["output"]))
        return FolderSignature(
            format=self._format,
            made_by={"sparsify": version("sparsify"), "torch": torch.__version__},
            config=config,
            grid=sparse.grid,
            batch=sparse.batch,
            only_grids=sparse.only_grids,
            parameters=tuple(
                (p.name, p.kind.name, p.default is not inspect.Parameter.empty) for p in parameters
            ),
            inputs=tuple(
                _input(path, name, leaf, layout.grid if layout else None)
                for path, name, leaf, layout in zip(
                    call.signature.names, self._inputs, call.leaves, sparse.layouts, strict=True
                )
            ),
            outputs=_structure(sparse.output_spec, leaves),
            values={name: self._value(name) for name in exchanged},
            graphs=graphs,
        )

    def _value(self, name: str) -> Value:
        tensor = self._values[name]
        shape: tuple[int | None, ...] = tuple(tensor.shape)
        if name in self._dynamic:
            shape = (None, *shape[1:])
        return Value(shape, dtype_name(tensor.dtype))


def _results(module: GraphModule) -> Any:
    return module.graph.output_node().args[0]


def _names(call: Call, taken: set[str]) -> list[str]:
    """One for each leaf of the call, fit for every format, and none that is ``taken``."""
    names: list[str] = []
    for path in call.signature.names:
        name = re.sub(r"\W+", "_", path).strip("_")
        while name in taken or name in names:
            name += "_"
        names.append(name)
    return names


def _weights(joint: GraphModule, folds: Sequence[Fold]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The name of every constant of the graphs, the same for tied ones, and the tensors.

    Instead of those that are made of others, these others.
    """
    names: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    first: dict[Any, str] = {}
    read = [str(node.target) for node in joint.graph.find_nodes(op="get_attr")]
    made = {fold.name for fold in folds}
    sources = [weight for fold in folds for weight in fold.weights]
    for name in dict.fromkeys([*(name for name in read if name not in made), *sources]):
        tensor = attrgetter(name)(joint)
        if isinstance(tensor, Tensor):
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            names[name] = first.setdefault(key, name)
            tensors[first[key]] = tensor.detach()
    return names, tensors


def _save(tensors: Mapping[str, Tensor], used: Iterable[str], path: Path) -> dict[str, Stored]:
    """Writes the ``used`` tensors; returns where in the file each lies."""
    chosen: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name in sorted(name for name in used if name in tensors):
        tensor = tensors[name].contiguous()
        start = tensor.untyped_storage().data_ptr()
        chosen[name] = tensor.clone() if start in memory else tensor  # parts of one weight
        memory.add(start)
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


def _leaf(number: int, leaf: Any) -> dict[str, Any]:
    return {"value": f"output.{number}"} if isinstance(leaf, Node) else {"constant": leaf}


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
