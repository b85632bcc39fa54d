"""Sessions as folders: a file for each call, and ``session.json``, which names and hashes them.

A file is never written to again, and one rename publishes the names of all: whenever the writing
process ends, the folder holds the old session or the new one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from .baseline import Baseline
from .baseline_file import save_baseline
from .codegen.errors import FolderError
from .hashed import about, check_files

_INDEX, _VERSION = "session.json", 1
_OURS = re.compile(r"session\.json|\d{4,}-[0-9a-f]{8}\.(safetensors|json)|\.tmp\w+")
"""Also what a save that was broken off leaves; safetensors writes to names of the last kind."""


def save_calls(calls: Sequence[Baseline], path: Path) -> None:
    """Writes the folder ``path``, and replaces a session there. Raises :class:`FolderError`, and
    :class:`BaselineError` as :func:`save_baseline`; what was there is left then."""
    _require_ours(path)
    token = secrets.token_hex(4)
    names = [f"{number:04}-{token}.safetensors" for number in range(len(calls))]
    index = path / f"{len(calls):04}-{token}.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, call in zip(names, calls, strict=True):
            save_baseline(call, path / name)
        files = {name: about(path / name) for name in names}
        index.write_text(json.dumps({"version": _VERSION, "files": files}, indent=1) + "\n")
        index.replace(path / _INDEX)
    except BaseException as error:
        _remove((*(path / name for name in names), index))
        if isinstance(error, OSError):
            reason = f"cannot be written ({error.strerror})"
            raise FolderError(f"{path} {reason}: give another path") from None
        raise
    _remove(one for one in path.iterdir() if one.name not in (_INDEX, *names))


def files_of_calls(path: Path) -> list[Path]:
    """What :func:`save_calls` wrote.

    Raises :class:`FolderError` for a folder that is not as it was written.
    """
    try:
        index = json.loads((path / _INDEX).read_bytes())
        version, files = index["version"], index["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path} holds no session ({error}): save one again") from None
    if version != _VERSION:
        raise FolderError(f"{path} was saved by another version of sparsify: record again")
    check_files(path, files, "save the session again")
    return [path / name for name in files]


def _require_ours(path: Path) -> None:
    """Raises :class:`FolderError` for what is no session, and no rest of one."""
    is_folder = path.is_dir()
    if path.exists() and not (is_folder and all(_OURS.fullmatch(p.name) for p in path.iterdir())):
        raise FolderError(f"{path} exists and is no session: give another path")


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
