"""A folder for the files of one process, which is gone when that is."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..codegen.errors import StoreError

_PREFIX, _LOCK = "sparsify-baselines-", "lock"


class Scratch:
    """A new folder in ``parent``. It is removed with :meth:`remove`, with this object, and when the
    process ends; if that is killed, by the next one that makes a folder there.

    Whose process lives holds a lock in it, which the system takes away from one that died.
    Raises :class:`StoreError` where no folder can be made.
    """

    def __init__(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_left(parent)
            new = Path(tempfile.mkdtemp(dir=parent, prefix=f".{_PREFIX}"))
            lock = (new / _LOCK).open("wb")
            with suppress(OSError):  # a file system without locks: what is left there stays
                _take(lock)
            # Locked before it has the name by which others look for it.
            self.path = new.rename(parent / new.name[1:])
        except OSError as error:
            raise StoreError(
                f"folder={str(parent)!r} cannot be written ({error.strerror}): give another one"
            ) from None
        self.remove = weakref.finalize(self, _removed, self.path, lock, os.getpid())


def _removed(path: Path, lock: BinaryIO, owner: int) -> None:
    if os.getpid() == owner:  # and no copy that was forked from it
        shutil.rmtree(path, ignore_errors=True)
    lock.close()


def _remove_left(parent: Path) -> None:
    """What processes that were killed left."""
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), (path / _LOCK).open("rb+") as lock:
            _take(lock)
            shutil.rmtree(path, ignore_errors=True)


def _take(lock: BinaryIO) -> None:
    """Raises :class:`OSError` if another one has it."""
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError("no locks") from error
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
