"""An exported folder: what its ``signature.json`` says, and whether its files are those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from .codegen.errors import FolderError
from .codegen.nm.pattern import NM
from .hashed import check_files, files_of, is_whole
from .sidecar import Sidecar

Format = Literal["pt2", "onnx", "aoti"]
FORMATS: tuple[str, ...] = get_args(Format)
VERSION = 4
"""Of the folder; another one is refused."""
COMMITTED = "committed."
"""In place of ``baseline.`` in the names of what a commit returns."""
SIGNATURE, WEIGHTS = "signature.json", "weights.safetensors"


@dataclass(frozen=True)
class Value:
    """A tensor that graphs exchange; a size None is a number of sites, known once a mask is."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Input:
    """A leaf of the call's arguments: a tensor ``name``, or a ``constant`` (its repr)."""

    path: str
    """Where it stands in the call, ``added_cond_kwargs['time_ids']``, say."""
    name: str | None
    constant: str | None
    grid: tuple[int, int] | None
    """Where an edit changes it; None for what an edit leaves alone."""


@dataclass(frozen=True)
class GraphFile:
    """A graph's file, and its arguments (inputs, then weights) and results, by name."""

    file: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class FolderSignature:
    """Everything that a loader has to know."""

    format: str
    made_by: dict[str, str]
    """Versions of sparsify and torch."""
    config: dict[str, Any]
    """As given to ``sparsify()``: the policy and its settings."""
    parameters: tuple[tuple[str, str, bool], ...]
    """Of the model's ``forward``: name, kind, has a default."""
    inputs: tuple[Input, ...]
    outputs: Any
    """Containers ``{"tuple" | "list": [...]}`` and ``{"dict" | "named": {...}}`` of leaves
    ``{"value": name}`` and ``{"constant": ...}``."""
    values: dict[str, Value]
    graphs: dict[str, GraphFile]
    """See :data:`.passes.partition.CUTS`; without those that do nothing, and without ``again``
    where it is ``update``. ``constants``, if it is there, is run once, at load: its results are
    further weights."""
    weights: str
    """A fingerprint of the model's."""
    sparse: dict[str, NM]
    """Of layers, by name, with N:M sparse weights: what they keep. N is the weight
    ``kept.LAYER``, int32 []; others than those of the export can be given to ``constants``."""
    schedule: str | None
    """Of sampling runs, as :meth:`.Schedule.to_json` writes it."""
    sidecar: Sidecar
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Size and sha256 of every other file."""
    version: int = VERSION


def write_signature(folder: Path, signature: FolderSignature) -> None:
    """Adds sizes and hashes of all files in ``folder``, and of itself."""
    content = {**asdict(signature), "files": files_of(folder)}
    content["sha256"] = _digest(content)
    (folder / SIGNATURE).write_text(json.dumps(content, indent=1) + "\n")


def read_signature(folder: Path) -> FolderSignature:
    """The signature of ``folder``, after every file was checked against it.

    Raises :class:`FolderError`.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        raise FolderError(f"{folder} has no {SIGNATURE}: give a folder that sparse.export wrote")
    try:
        content = json.loads(path.read_bytes())
        version, expected = content["version"], content.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{path} cannot be read ({error}): export again") from None
    if version != VERSION:
        raise FolderError(
            f"{folder} has version {version}, this sparsify reads version {VERSION}: export again"
        )
    if _digest(content) != expected:
        raise FolderError(f"{path} was changed after the export: export again")
    try:
        signature = _from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"{path} lacks parts ({error}): export again") from None
    _check_files(folder, signature)
    return signature


def is_exported(folder: Path) -> bool:
    """Does ``folder`` hold what an export wrote, of any version, and nothing else?"""
    return is_whole(folder, SIGNATURE)


def _check_files(folder: Path, signature: FolderSignature) -> None:
    """The files that are loaded, and no others, are known by their hashes."""
    loaded = {WEIGHTS, *(graph.file for graph in signature.graphs.values())}
    if odd := sorted({n for n in loaded if n not in signature.files or Path(n).name != n}):
        raise FolderError(f"{folder / SIGNATURE} has no hash of {odd[0]}: export again")
    check_files(folder, signature.files, "export again")


def _from_json(content: dict[str, Any]) -> FolderSignature:
    content = {**content, "parameters": tuple(content["parameters"])}
    content["inputs"] = tuple(Input(**_tuples(entry)) for entry in content["inputs"])
    content["values"] = {k: Value(**_tuples(v)) for k, v in content["values"].items()}
    content["graphs"] = {k: GraphFile(**_tuples(v)) for k, v in content["graphs"].items()}
    content["sparse"] = {layer: NM(*pattern) for layer, pattern in content["sparse"].items()}
    content["sidecar"] = Sidecar.from_json(content["sidecar"])
    return FolderSignature(**{f.name: content[f.name] for f in fields(FolderSignature)})


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
        for k, v in entry.items()
    }


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
