"""Folders whose files are known by size and hash, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .codegen.errors import FolderError

Files = Mapping[str, Mapping[str, Any]]
"""Size and sha256 of each file, by its name."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new folder, which becomes ``path`` unless something fails: then that stays as it was.

    Raises :class:`FolderError` for a path where no folder can be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise FolderError(f"{path} cannot be made ({error.strerror}): give another path") from None
    with beside as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        yield new
        if not path.exists():
            new.rename(path)
            return
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of the files of ``folder``."""
    return {path.name: about(path) for path in sorted(folder.iterdir()) if path.is_file()}


def about(path: Path) -> dict[str, Any]:
    """What is known of a file."""
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def check_files(folder: Path, files: Files, again: str) -> None:
    """Raises :class:`FolderError` unless the files are those; ``again`` says what to do then."""
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            raise FolderError(f"{folder} lacks {name}: copy the whole folder, or {again}")
        size = path.stat().st_size
        if size != known["size"]:
            raise FolderError(
                f"{path} has {size} bytes, {known['size']} were written: "
                f"it is truncated or another file; copy it again, or {again}"
            )
        if _sha256(path) != known["sha256"]:
            raise FolderError(f"{path} was changed after it was written: {again}")


def is_whole(folder: Path, index: str) -> bool:
    """Has ``folder`` the file ``index``, of any version, and nothing that it does not name?"""
    try:
        known = set(json.loads((folder / index).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {path.name for path in folder.iterdir()} <= known | {index}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
