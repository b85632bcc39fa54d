"""Sessions whose steps reuse a part of the model, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify import ConfigError, Schedule, Session, SessionError, SparseModule, sparsify
from tests.small import small_inputs, small_unet

STEPS = 6
GRID = tuple(small_inputs()[0].shape[-2:])
MASK = torch.zeros(GRID, dtype=torch.bool)
MASK[3:8, 4:9] = True


def wrapped(**config: Any) -> SparseModule:
    return sparsify(small_unet(), backend="eager", dense_share=0.0, dilate=0, **config)


@torch.no_grad()
def sampled(net: Any, x: Tensor) -> Tensor:
    for t in range(STEPS, 0, -1):
        x = x - net(x, torch.tensor(t / STEPS), small_inputs()[2]) / STEPS
    return x


def recorded(sparse: SparseModule, schedule: Schedule | None) -> Session:
    with sparse.recording(schedule) as session:
        sampled(sparse, small_inputs()[0])
    return session


def painted() -> Tensor:
    x = small_inputs()[0]
    return torch.where(MASK, x + 1, x)


def test_with_every_step_a_key_updates_are_the_plain_ones() -> None:
    sparse = wrapped()
    with recorded(sparse, None).editing(MASK):
        want = sampled(sparse, painted())
    every = Schedule.every(1, STEPS, reuse="deep")
    with recorded(sparse, every).editing(MASK, every):
        torch.testing.assert_close(sampled(sparse, painted()), want, rtol=1e-5, atol=1e-6)


def test_an_edit_that_changes_nothing_is_the_recorded_run() -> None:
    sparse, schedule = wrapped(), Schedule.every(3, STEPS, order=1, reuse="deep")
    with sparse.recording(schedule) as session:
        want = sampled(sparse, small_inputs()[0])
    with session.editing(MASK, schedule):
        torch.testing.assert_close(sampled(sparse, small_inputs()[0]), want, rtol=1e-4, atol=1e-5)


def test_steps_that_reuse_keep_less_and_compute_less() -> None:
    sparse, schedule = wrapped(), Schedule.every(3, STEPS, reuse="deep")
    session = recorded(sparse, schedule)
    key, other = session.calls[0].nbytes, session.calls[1].nbytes
    assert 0 < other < 0.9 * key
    with session.editing(MASK, schedule) as editing:
        sampled(sparse, painted())
    report = editing.report()
    assert report.macs_now < min(report.macs_space, report.macs_time) < report.macs_dense
    assert [step.is_key for step in report] == [True, False, False] * 2
    assert sum(step.macs_now for step in report) == report.macs_now
    assert sum(node.macs_now for node in report.nodes()) == report.macs_now
    with sparse.sampling(Schedule.every(3, STEPS)) as sampling:
        sampled(sparse, painted())
    assert sampling.report().share_left == pytest.approx(1 / 3)


def test_a_run_has_to_be_recorded_for_the_part_that_its_edits_reuse() -> None:
    sparse, deep = wrapped(), Schedule.every(3, STEPS, reuse="deep")
    with pytest.raises(SessionError, match="'deep'"), recorded(sparse, None).editing(MASK, deep):
        sampled(sparse, painted())
    session, more = recorded(sparse, deep), Schedule.every(2, STEPS, reuse="deep")
    with pytest.raises(SessionError, match="call 3"), session.editing(MASK, more):
        sampled(sparse, painted())
    with session.editing(MASK, Schedule.at([0], STEPS, reuse="deep")):
        sampled(sparse, painted())
    exact = wrapped(policy="exact")
    with pytest.raises(ConfigError, match="exact"), recorded(exact, deep).editing(MASK, deep):
        sampled(exact, painted())


def test_a_mask_may_be_empty_or_whole() -> None:
    sparse, schedule = wrapped(), Schedule.every(3, STEPS, reuse="deep")
    with sparse.recording(schedule) as session:
        want = sampled(sparse, small_inputs()[0])
    with session.editing(torch.zeros_like(MASK), schedule):
        torch.testing.assert_close(sampled(sparse, small_inputs()[0]), want)
    with sparse.sampling(schedule):
        new = sampled(sparse, painted())
    with session.editing(torch.ones_like(MASK), schedule):
        torch.testing.assert_close(sampled(sparse, painted()), new, rtol=1e-4, atol=1e-5)


def test_restricted_sessions_are_edited_by_their_schedule() -> None:
    sparse, schedule = wrapped(), Schedule.every(3, STEPS, reuse="deep")
    session = recorded(sparse, schedule)
    with session.editing(MASK, schedule):
        want = sampled(sparse, painted())
    whole = session.nbytes
    session.restrict(MASK)
    assert session.nbytes < whole
    with session.editing(MASK, schedule):
        torch.testing.assert_close(sampled(sparse, painted()), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [None, "output", "deep"])
def test_edits_follow_edits(part: str | None) -> None:
    """From the session of an edited run: the same inputs give it again, those of the first run what
    that was."""
    sparse = wrapped(warn_dropped=False)
    schedule = None if part is None else Schedule.every(2, STEPS, order=1, reuse=part)
    session = recorded(sparse, schedule)
    with session.editing(MASK, schedule, keep=True) as editing:
        want = sampled(sparse, painted())
    assert len(editing.session.calls) == STEPS
    with editing.session.editing(MASK, schedule, keep=True) as second:
        got = sampled(sparse, painted())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with second.session.editing(MASK, schedule):
        back = sampled(sparse, small_inputs()[0])
    with session.editing(MASK, schedule):
        start = sampled(sparse, small_inputs()[0])
    torch.testing.assert_close(back, start, rtol=1e-4, atol=1e-5)


def test_sessions_of_edits_are_kept_if_asked() -> None:
    sparse = wrapped()
    with recorded(sparse, None).editing(MASK) as editing:
        sampled(sparse, painted())
    with pytest.raises(SessionError, match="edit with keep=True"):
        _ = editing.session
