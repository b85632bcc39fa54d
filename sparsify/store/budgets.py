"""Which values lie in which tier, by numbers alone: when there is no room, those that were not used
for longest move down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

TIERS = ("device", "host", "disk")
DEVICE, HOST, DISK = range(3)
Limits = tuple[float, float, float]
"""Bytes of each tier; 0: there is none."""
Move = tuple["Item", int]
"""What, and into which tier."""


@dataclass(eq=False)
class Item:
    """Values that lie in one tier as a whole."""

    sizes: tuple[int, int, int]
    """The bytes that they take in each."""
    highest: int = DEVICE
    """The first tier that is for them: there are values that no device has."""
    tier: int | None = None
    used: int = 0
    """When: a larger number is later."""


class Placement:
    """Items in their tiers, and what has to move to make room for others."""

    def __init__(self, items: Iterable[Item], limits: Limits) -> None:
        """As they lie now."""
        self._limits = limits
        self._lying: tuple[list[Item], ...] = ([], [], [])
        for item in items:
            if item.tier is not None:
                self._lying[item.tier].append(item)

    def bytes_in(self, tier: int) -> int:
        return sum(item.sizes[tier] for item in self._lying[tier])

    def put(self, item: Item) -> list[Move] | None:
        """Puts it into the first tier with room, once others have moved down. Returns all moves, in
        an order in which no limit is exceeded. None if there is no room: then all may lie
        otherwise than before."""
        moves = list[Move]()
        return moves if self._put(item, item.highest, moves) else None

    def _put(self, item: Item, highest: int, moves: list[Move]) -> bool:
        return any(self._put_into(tier, item, moves) for tier in range(highest, len(TIERS)))

    def _put_into(self, tier: int, item: Item, moves: list[Move]) -> bool:
        size, limit, lying = item.sizes[tier], self._limits[tier], self._lying[tier]
        if size > limit:
            return False
        while self.bytes_in(tier) + size > limit:
            oldest = min(lying, key=lambda one: one.used)
            if not self._put(oldest, tier + 1, moves):
                return False
            lying.remove(oldest)
        lying.append(item)
        moves.append((item, tier))
        return True


def would_do(items: Iterable[Item], new: Sequence[Item], limits: Limits) -> tuple[int, int]:
    """The lowest tier that there is, and a limit for it with which all that is ``new`` has room."""
    highest = max(item.highest for item in new)
    tiers = (tier for tier, limit in enumerate(limits) if limit and tier >= highest)
    lowest = max(tiers, default=HOST)
    device, host, disk = (inf if tier == lowest else limit for tier, limit in enumerate(limits))
    placement = Placement(items, (device, host, disk))
    for item in new:
        placement.put(item)
    return lowest, placement.bytes_in(lowest)
