"""Which values lie in which tier: limits hold, and the least recently used lie lowest."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.store.budgets import Item, Limits, Move, Placement, would_do
from sparsify.words import bytes_of, size_for

SIZES = st.integers(1, 9)
TIERS = st.one_of(st.just(0), st.integers(0, 40), st.just(inf))
LIMITS = st.tuples(TIERS, TIERS, TIERS)


def sizes() -> st.SearchStrategy[tuple[int, int, int]]:
    """Pinned memory may take more."""
    return st.tuples(SIZES, st.integers(0, 9)).map(lambda own: (own[0], sum(own), own[0]))


def items(least: int = 0, most: int = 12) -> st.SearchStrategy[list[Item]]:
    return st.lists(
        st.builds(Item, sizes(), st.sampled_from([0, 1])), min_size=least, max_size=most
    )


def carried_out(known: Sequence[Item], moves: Sequence[Move], limits: Limits) -> None:
    """One move after another; no limit is exceeded between them."""
    for item, tier in moves:
        assert item.tier is None or item.tier < tier
        assert tier >= item.highest
        item.tier = tier
        for number, limit in enumerate(limits):
            assert sum(one.sizes[number] for one in known if one.tier == number) <= limit


def kept(new: Sequence[Item], limits: Limits) -> list[Item]:
    """Those for which there was room, one after the other."""
    known = list[Item]()
    for used, item in enumerate(new):
        item.used = used
        moves = Placement(known, limits).put(item)
        if moves is not None:
            known.append(item)
            carried_out(known, moves, limits)
    return known


@given(LIMITS, items())
def test_no_limit_is_exceeded(limits: Limits, new: list[Item]) -> None:
    known = kept(new, limits)
    assert all(item.tier is not None for item in known)
    if sum(item.sizes[2] for item in new) <= limits[2]:
        assert known == new


@given(LIMITS, SIZES, st.integers(0, 20))
def test_what_was_used_last_lies_highest(limits: Limits, size: int, count: int) -> None:
    known = kept([Item((size, size, size)) for _ in range(count)], limits)
    tiers = [item.tier for item in known if item.tier is not None]
    assert tiers == sorted(tiers, reverse=True)
    assert len(known) == min(count, sum(min(limit // size, count) for limit in limits))


@given(LIMITS, items(most=6), items(least=1))
def test_what_would_do_does(limits: Limits, before: list[Item], new: list[Item]) -> None:
    known = kept(before, limits)
    for used, item in enumerate(new, len(before)):
        item.used = used
    tier, count = would_do(known, new, limits)
    wider = tuple(max(limit, count) if n == tier else limit for n, limit in enumerate(limits))
    placement = Placement(known, (wider[0], wider[1], wider[2]))
    for item in new:
        moves = placement.put(item)
        assert moves is not None
    if count <= limits[tier]:
        assert all(Placement(known, limits).put(item) is not None for item in new[:1])


@given(st.integers(0, 1 << 45))
def test_the_size_that_is_told_is_enough(count: int) -> None:
    told = bytes_of(size_for(count))
    assert count <= told <= 1.1 * count


@pytest.mark.parametrize(
    ("text", "count"),
    [("0 B", 0), ("4 GiB", 4 << 30), ("1.5GB", 1_500_000_000), ("2tib", 2 << 40), ("7 KB", 7000)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "4", "GiB", "-1 GiB", "4 GiBs", "four GiB", "4 iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        bytes_of(text)
