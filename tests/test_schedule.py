"""Schedules are plain data, and say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify import ConfigError, Schedule

STEPS = st.integers(1, 30)


@given(STEPS, st.data(), st.integers(0, 2))
def test_forecasts_are_exact_for_polynomials_of_their_order(
    steps: int, data: st.DataObject, order: int
) -> None:
    keys = {0, *data.draw(st.sets(st.integers(0, steps - 1)))}
    schedule = Schedule.at(keys, steps, order)
    assert schedule.keys == tuple(sorted(keys)) and schedule.steps == steps
    for step, row in enumerate(schedule.rows):
        known = [key for key in schedule.keys if key <= step]
        degree = min(order, len(known) - 1)
        assert sum(weight * key**degree for key, weight in row) == pytest.approx(step**degree)
        assert [key for key, _ in row] == ([step] if step in keys else known[-degree - 1 :])


@given(STEPS, st.integers(1, 9), st.integers(0, 2))
def test_json_gives_the_same_schedule(steps: int, count: int, order: int) -> None:
    schedule = Schedule.every(count, steps, order)
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert len(schedule.keys) == -(-steps // count)


def test_a_strip_says_which_steps_call_the_model(tmp_path: Path) -> None:
    schedule = Schedule.at([0, 1, 4], 6, order=1)
    assert str(schedule) == "██░░█░ 3 of 6 steps"
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule
    schedule.picture(tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 200


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.at([1, 2], 5), "first step"),
        (lambda: Schedule.at([], 5), "first step"),
        (lambda: Schedule.at([0, 5], 5), "of 5 steps"),
        (lambda: Schedule.at([0], 5, order=3), "order=3"),
        (lambda: Schedule.every(0, 5), "at least 1"),
        (lambda: Schedule((((0, 1.0),), ((2, 1.0),), ((2, 1.0),))), "step 1 cannot take"),
        (lambda: Schedule((((0, 1.0),), ((0, float("nan")),))), "step 1 cannot take"),
        (lambda: Schedule((((0, 1.0),),), timesteps=(1.0, 2.0)), "2 timesteps for 1 steps"),
        (lambda: Schedule.from_json("{}"), "no schedule"),
        (lambda: Schedule.load("/nowhere.json"), "cannot be read"),
    ],
)
def test_what_no_run_could_follow_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()
