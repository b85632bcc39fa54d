"""Programs as torch.export archives."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import FolderError

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""A program of a folder: inputs, then weights -> outputs."""


def write(exported: ExportedProgram, path: Path) -> None:
    """No example inputs: they would be pickled."""
    exported._example_inputs = None
    torch.export.save(exported, path)


def read(path: Path) -> Run:
    """Raises :class:`FolderError` for an archive that torch would unpickle a part of."""
    with zipfile.ZipFile(path) as archive:
        pickled = [f.filename for f in archive.infolist() if f.file_size and _is_pickle(archive, f)]
    if pickled:
        raise FolderError(f"{path.name} has pickles ({pickled[0]}), an export none: export again")
    module = torch.export.load(path).module(check_guards=False)
    return lambda tensors: module(tuple(tensors))


def _is_pickle(archive: zipfile.ZipFile, file: zipfile.ZipInfo) -> bool:
    """Does torch unpickle this member, or what it lists? Constants are raw bytes otherwise."""
    if not file.filename.endswith("_config.json"):
        return "/sample_inputs/" in file.filename
    listed = json.loads(archive.read(file))["config"]
    return any(entry["use_pickle"] for entry in listed.values())
