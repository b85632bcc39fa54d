"""Values that are fetched when they are read, and those of the next call meanwhile."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..baseline import Remote, first_names
from .budgets import DEVICE, HOST, Item
from .places import CLOSED, Arriving, AsMade, Place, pinned_bytes
from .values_file import Tensors


@dataclass(eq=False, kw_only=True)
class Entry(Item):
    """The values of one baseline; those that share memory lie in their place once."""

    names: Mapping[str, str]
    """Of all values: the one of those that lie there."""
    devices: Mapping[str, torch.device]
    """Of those that lie there: where they were made."""
    place: Place

    @staticmethod
    def of(values: Mapping[str, Tensor]) -> Entry:
        """Where they were made."""
        names = first_names(values)
        tensors = {name: value for name, value in values.items() if names[name] == name}
        size = sum(tensor.nbytes for tensor in tensors.values())
        is_on_host = all(tensor.device.type == "cpu" for tensor in tensors.values())
        return Entry(
            sizes=(size, pinned_bytes(tensors), size),
            highest=HOST if is_on_host else DEVICE,
            names=names,
            devices={name: tensor.device for name, tensor in tensors.items()},
            place=AsMade(tensors),
        )

    def named(self, tensors: Tensors) -> Tensors:
        """All values, of those that lie in the place."""
        # One memory, but not one tensor twice: see Runtime._remembered.
        return {
            name: tensors[own] if own == name else tensors[own].detach()
            for name, own in self.names.items()
        }


class Paged(Remote):
    """The values of a baseline that lie in a store."""

    def __init__(self, entry: Entry, reader: Reader, after: Paged | None) -> None:
        """``after`` is what is read before them."""
        self.entry, self.reader = entry, reader
        self.run: object = object() if after is None else after.run
        self.number = reader.clock()
        self._next: weakref.ref[Paged] | None = None
        self.coming: Future[Arriving] | None = None
        """Where they are fetched before they are read."""
        if after is not None:
            after.goes_on_with(self)

    @property
    def nbytes(self) -> int:
        return self.entry.sizes[DEVICE]

    def fetched(self) -> Tensors:
        return self.reader.fetched(self)

    def __getitem__(self, name: str) -> Tensor:
        return self.fetched()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entry.names)

    def __len__(self) -> int:
        return len(self.entry.names)

    def items(self) -> ItemsView[str, Tensor]:
        return self.fetched().items()

    def values(self) -> ValuesView[Tensor]:
        return self.fetched().values()

    @property
    def next(self) -> Paged | None:
        """What is read after them, as far as that is known."""
        return None if self._next is None else self._next()

    def goes_on_with(self, other: Paged) -> None:
        self._next = weakref.ref(other)


class _Last(threading.local):
    """What one thread has read, and what is fetched for it."""

    def __init__(self) -> None:
        self.read: weakref.ref[Paged] | None = None
        self.coming: weakref.ref[Paged] | None = None


@dataclass(eq=False)
class Reader:
    """Fetches values, one call ahead of each thread that reads.

    The calls of a run are read in order. Where one is left out, as by a schedule, the next run is
    expected to leave it out too. So the values of two calls of a run are in memory: those in use,
    and the next.
    """

    fetches: Counter[str] = field(default_factory=Counter)
    """How many were there, or on their way, when they were read: "ahead"; and how many "late"."""
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "sparsify-store")
    )
    _last: _Last = field(default_factory=_Last)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ticks: Iterator[int] = field(default_factory=itertools.count)

    def clock(self) -> int:
        """A larger number each time."""
        return next(self._ticks)

    def fetched(self, paged: Paged) -> Tensors:
        entry = paged.entry
        entry.used = self.clock()
        self._turn_to(paged)
        place = entry.place
        came = place.fetched() if isinstance(place, AsMade) else self._awaited(paged)
        tensors = came.here()
        self._look_ahead(paged)
        return entry.named(tensors)

    def _awaited(self, paged: Paged) -> Arriving:
        # Always on that one thread: memory that one thread has freed, another does not reuse.
        coming, paged.coming = paged.coming, None
        with self._lock:
            self.fetches["late" if coming is None else "ahead"] += 1
        try:
            return (coming or self._begun(paged)).result()
        except CancelledError:
            return CLOSED.fetched()

    def _begun(self, paged: Paged) -> Future[Arriving]:
        try:
            return self._pool.submit(paged.entry.place.fetched)
        except RuntimeError:  # it takes nothing more
            return CLOSED.fetched()

    def _turn_to(self, paged: Paged) -> None:
        """Learns the order, and drops what was fetched in vain."""
        last = self._last
        before, coming = _alive(last.read), _alive(last.coming)
        if before is not None and before.run is paged.run and before.number < paged.number:
            before.goes_on_with(paged)
        if coming is not None and coming is not paged:
            coming.coming = None
        last.read, last.coming = weakref.ref(paged), None

    def _look_ahead(self, paged: Paged) -> None:
        following = paged.next
        if following is None or isinstance(following.entry.place, AsMade):
            return
        if following.coming is None:
            following.coming = self._begun(following)
        self._last.coming = weakref.ref(following)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _alive(of: weakref.ref[Paged] | None) -> Paged | None:
    return None if of is None else of()
