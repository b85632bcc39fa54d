"""What is closed at the end of a ``with``."""

from __future__ import annotations

from typing import TypeVar

Own = TypeVar("Own", bound="Closing")


class Closing:
    """A context manager of itself."""

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError
