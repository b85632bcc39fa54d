"""What is kept of an edited call, made when it is read: an edit that is not edited again costs what
its updates cost, and no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from torch import Tensor

from .baseline import Baseline, Remote, distinct
from .runtime import copied
from .signature import Call

Make = Callable[[], Baseline]


class Deferred(Remote):
    """The values of the baseline that ``make`` gives."""

    def __init__(self, make: Make) -> None:
        self._make: Make | None = make
        self._made: Mapping[str, Tensor] = {}
        self._making = Lock()

    @property
    def nbytes(self) -> int:
        """0 before they are made."""
        return 0 if self._make is not None else sum(distinct(list(self._made.values())))

    def fetched(self) -> Mapping[str, Tensor]:
        with self._making:
            if self._make is not None:
                self._made = self._make().fetched()
                self._make = None  # and with it the baseline that they are made from
            return self._made

    def __getitem__(self, name: str) -> Tensor:
        return self.fetched()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fetched())

    def __len__(self) -> int:
        return len(self.fetched())


def deferred(baseline: Baseline, call: Call, outputs: Sequence[Any], make: Make) -> Baseline:
    """That of a ``call`` with inputs of its own that gave ``outputs``, edited from ``baseline``;
    ``make`` gives the same with its values."""
    return replace(
        baseline,
        values=Deferred(make),
        outputs=tuple(copied(outputs)),
        inputs=call.leaves,
        origins=(None,) * len(call.leaves),
        is_one_run=False,
        is_forecast=False,
    )
