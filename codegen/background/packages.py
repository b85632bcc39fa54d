"""Compiled code on disk, for processes to come: AOTInductor's packages, which are no pickles."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

MOST_BYTES = 4 << 30
"""Of all packages; those not used for longest are removed first."""
_SUFFIX = ".pt2"
_DAY = 24 * 60 * 60


def default_folder() -> Path:
    """``SPARSIFY_CACHE_DIR``, or the platform's folder for what can be made again."""
    own = os.environ.get("SPARSIFY_CACHE_DIR")
    return Path(own) if own else Path(platformdirs.user_cache_dir("sparsify"))


@dataclass(frozen=True)
class Packages:
    """A folder of packages by key. Several processes may use it: a file appears as a whole."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def find(self, key: str) -> Path | None:
        """The package, from now on the last one used."""
        path = self._path(key)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """A folder to write ``package.pt2`` in, which is kept if all goes well."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
        try:
            yield scratch
            os.replace(scratch / f"package{_SUFFIX}", self._path(key))
            self._evict()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def all(self) -> list[Path]:
        """The packages, the one used last at the end."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # removed meanwhile
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def clear(self) -> int:
        """Removes all packages; returns how many bytes they had."""
        return sum(map(_removed, self.all()))

    def _evict(self) -> None:
        for scratch in self.folder.glob(".making-*"):  # of processes that were killed
            with suppress(OSError):
                if scratch.stat().st_mtime < time.time() - _DAY:
                    shutil.rmtree(scratch, ignore_errors=True)
        left = self.all()
        excess = sum(path.stat().st_size for path in left) - self.most_bytes
        for path in left[:-1]:
            if excess > 0:
                excess -= _removed(path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def _removed(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except OSError:
        return 0
    return size
