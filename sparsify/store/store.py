"""Baselines in the memory of the device, in that of the host and on disk, within budgets."""

from __future__ import annotations

import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from shutil import disk_usage
from threading import RLock
from typing import Any

from ..baseline import Baseline
from ..closing import Closing
from ..codegen.errors import ConfigError, StoreError
from ..schedule import Schedule
from ..words import bytes_of, size_for, size_of
from .budgets import DISK, HOST, TIERS, Item, Limits, Placement, would_do
from .paging import Entry, Paged, Reader
from .places import CLOSED, OnDisk, OnHost
from .scratch import Scratch

Budget = int | str | None
"""Bytes, or text such as "4 GiB"; None is no limit, 0 no such tier."""


class BaselineStore(Closing):
    """Where sessions keep what they record: in the memory of the ``device``, in that of the
    ``host``, on ``disk``, in each up to a budget. What was not used for longest moves down to make
    room, and nothing moves up: calls are read in turn, so what would have to make room for one is
    needed soon.

    Beside the budgets, the values of two calls are in memory for each run that is edited: those in
    use, and those of the next call, which are fetched meanwhile. On CUDA the host's memory is
    pinned, and values travel on a stream of their own; the values of a CPU know no tier "device".

    Files lie in a folder of their own in ``folder``, by default that for temporary files, until the
    store is closed, or nobody refers to it and its sessions; :meth:`.Session.save` is what lasts.
    Each is checked by a hash when it is read. Several threads, and models, may share a store.

    Raises :class:`ConfigError`, and :class:`StoreError` for a folder that cannot be written.

    >>> with BaselineStore(host="4 GiB", disk="40 GiB") as store:
    ...     with sparse.recording(store=store, calls=50) as session:
    ...         sample(sparse)
    """

    def __init__(
        self,
        *,
        device: Budget = 0,
        host: Budget = 0,
        disk: Budget = 0,
        folder: str | Path | None = None,
    ) -> None:
        given = {"device": device, "host": host, "disk": disk}
        known = [_bytes(name, budget) for name, budget in given.items()]
        if not any(known):
            raise ConfigError('the store has no budget: BaselineStore(host="4 GiB", disk=None)')
        self.budgets: Limits = known[0], known[1], known[2]
        parent = Path(folder or tempfile.gettempdir())
        self._scratch = Scratch(parent) if known[DISK] else None
        self._reader, self._lock, self._is_closed = Reader(), RLock(), False
        self._known: weakref.WeakSet[Entry] = weakref.WeakSet()

    def __repr__(self) -> str:
        used = zip(TIERS, self.used.values(), self.budgets, strict=True)
        return f"<BaselineStore: {', '.join(_of(*one) for one in used if one[2])}>"

    @property
    def used(self) -> dict[str, int]:
        """Bytes in each tier."""
        with self._lock:
            placement = Placement(self._known, self.budgets)
        return {name: placement.bytes_in(tier) for tier, name in enumerate(TIERS)}

    @property
    def fetches(self) -> Counter[str]:
        """How often values were fetched "ahead", while the call before was computed, and "late"."""
        return self._reader.fetches

    def keep(self, baseline: Baseline, after: Baseline | None = None, more: int = 0) -> Baseline:
        """``baseline`` with its values in this store, to be read ``after`` those of another.

        Raises :class:`StoreError` if there is no room for it, and for so many ``more`` like it.
        """
        values, before = baseline.values, after and after.values
        if not values or (isinstance(values, Paged) and values.reader is self._reader):
            return baseline
        entry = Entry.of(baseline.fetched())
        with self._lock:
            self._put(entry, more)
        paged = Paged(entry, self._reader, before if isinstance(before, Paged) else None)
        return replace(baseline, values=paged)

    def close(self) -> None:
        """Forgets all values, and removes their files."""
        with self._lock:
            self._is_closed = True
            for entry in list(self._known):
                entry.place = CLOSED
        self._reader.close()
        if self._scratch is not None:
            self._scratch.remove()

    def _put(self, entry: Entry, more: int) -> None:
        """Raises :class:`StoreError`."""
        if self._is_closed:
            raise StoreError("this store was closed: make another one")
        new = [entry, *(Item(entry.sizes, entry.highest) for _ in range(more))]
        for item in new:
            item.used = self._reader.clock()
        known, limits = list(self._known), self._limits()
        placement = Placement(known, limits)
        moves = placement.put(entry)
        if moves is None or any(placement.put(item) is None for item in new[1:]):
            raise self._no_room(known, new, limits)
        for moved, tier in moves:
            assert isinstance(moved, Entry)
            self._move(moved, tier)
        self._known.add(entry)

    def _move(self, entry: Entry, tier: int) -> None:
        is_new = entry.tier is None and tier == entry.highest
        if tier == HOST and not is_new:
            entry.place = OnHost(entry.place.on_host(), entry.devices)
        elif tier == DISK:
            assert self._scratch is not None
            name = f"{self._reader.clock():06}.safetensors"
            entry.place = OnDisk(self._scratch, name, entry.place.on_host(), entry.devices)
        entry.tier = tier

    def _limits(self) -> Limits:
        """The budgets; of the disk no more than there is."""
        if self._scratch is None or self._is_closed:
            return self.budgets
        free = self.used["disk"] + disk_usage(self._scratch.path).free
        return self.budgets[0], self.budgets[1], min(self.budgets[2], free)

    def _no_room(self, known: Sequence[Item], new: Sequence[Item], limits: Limits) -> StoreError:
        """Says what budget would do."""
        tier, count = would_do(known, new, limits)
        size, where = new[0].sizes[DISK], ""
        what = f"{len(new)} calls of {size_of(size)} take {size_of(len(new) * size)}"
        if tier == DISK and limits[DISK] < min(count, self.budgets[DISK]):
            where = f" on another disk than that of {self._scratch and self._scratch.path.parent}"
        return StoreError(
            f"{what if len(new) > 1 else f'one more call takes {size_of(size)}'}, for which "
            f"{self!r} has no room: {TIERS[tier]}={size_for(count)!r}{where} would do; or keep "
            "less: baseline_dtype=torch.bfloat16, a schedule, session.restrict(mask)"
        )


class Calls(list[Baseline]):
    """The calls of a session, whose values lie in a store."""

    def __init__(
        self, store: BaselineStore, calls: Iterable[Baseline] = (), expected: int = 0
    ) -> None:
        """Of ``calls`` that lie there. The first that is added tells how much those take that are
        ``expected`` in all."""
        super().__init__(calls)
        self.store, self._expected = store, expected

    @staticmethod
    def of(
        store: BaselineStore | None, calls: int | None, schedule: Schedule | None = None
    ) -> list[Baseline]:
        """Empty, for a run that makes so many ``calls`` of the model, if that is known; with a
        ``schedule`` it is one for each step at least, and key steps alone count."""
        if store is None:
            return []
        if schedule is None:
            return Calls(store, expected=calls or 0)
        made = (calls or schedule.steps) * len(schedule.keys) // schedule.steps
        return Calls(store, expected=made)

    def append(self, baseline: Baseline) -> None:
        """Raises :class:`StoreError` if the store has no room."""
        last = next((one for one in reversed(self) if one.values), None)
        kept = self.store.keep(baseline, last, max(self._expected - len(self) - 1, 0))
        super().append(kept)
        if kept is not baseline:
            self._expected = 0


def _bytes(name: str, budget: Any) -> float:
    try:
        count = bytes_of(budget) if isinstance(budget, str) else inf if budget is None else budget
    except ValueError:
        count = -1
    if isinstance(count, bool) or not isinstance(count, int | float) or count < 0:
        raise ConfigError(
            f"{name}={budget!r}: bytes, text such as '4 GiB', None for no limit, 0 for no such tier"
        )
    return count


def _of(name: str, used: int, budget: float) -> str:
    return f"{name} {size_of(used)}" + ("" if budget == inf else f" of {size_of(int(budget))}")
