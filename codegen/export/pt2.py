"""Programs as torch.export archives."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


_MEMBERS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/model\.json|data/(weights|constants)/(model_(weights|constants)_config\.json"
    r"|(weight|tensor)_\d+)|data/sample_inputs/model\.pt)"
)
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")


def read(path: Path) -> Run:
    """Raises :class:`FolderError` for an archive that torch might unpickle a part of."""
    try:
        with zipfile.ZipFile(path) as archive:
            odd = _odd_members(archive)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise FolderError(f"{path.name} is no exported archive ({error}): export again") from None
    if odd:
        raise FolderError(f"{path.name} has parts that an export has not ({odd[0]}): export again")
    module = torch.export.load(path).module(check_guards=False)
    return lambda tensors: module(tuple(tensors))


def _odd_members(archive: zipfile.ZipFile) -> list[str]:
    """What :func:`write` does not make: everything that torch unpickles, and more.

    Constants are raw bytes if the configuration says so; without it older forms are tried.
    """
    files = {file.filename: file for file in archive.infolist()}
    odd = [name for name, f in files.items() if not _MEMBERS.fullmatch(name) or _is_pickle(f)]
    (root,) = {name.split("/")[0] for name in files}
    for config in _CONFIGS:
        listed = json.loads(archive.read(f"{root}/{config}"))["config"]
        odd += [name for name, entry in listed.items() if not _is_raw(entry)]
    return odd


def _is_pickle(file: zipfile.ZipInfo) -> bool:
    return file.filename.endswith(".pt") and file.file_size > 0


def _is_raw(entry: dict[str, Any]) -> bool:
    own = re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"])
    return entry["use_pickle"] is False and own is not None
