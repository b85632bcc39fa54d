"""Variants take turns, and every round but the first ones counts."""

from __future__ import annotations

from functools import partial

import pytest

from sparsify.timing import interleaved, medians, timed


@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_variants_take_turns(warm_up: int) -> None:
    order: list[str] = []
    heard: list[str] = []
    variants = {name: partial(order.append, name) for name in "ab"}
    times = interleaved(variants, 2, warm_up=warm_up, tell=heard.append)
    assert order == ["a", "b"] * (warm_up + 2)
    assert {name: len(of) for name, of in times.items()} == {"a": 2, "b": 2}
    assert heard == ["warming up"] * warm_up + ["round 1 of 2", "round 2 of 2"]


def test_the_result_comes_with_its_time() -> None:
    spent, result = timed(lambda: 7)
    assert result == 7 and spent >= 0
    assert medians({"a": [3.0, 1.0, 8.0]}) == {"a": 3.0}
