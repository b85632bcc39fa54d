"""Runs by a schedule: which calls run the model, and what the others give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify import Schedule, SessionError, SparseModule, sparsify

GRID = (12, 12)
MASK = torch.zeros(GRID, dtype=torch.bool)
MASK[2:6, 3:8] = True
PROMPT = torch.linspace(-0.1, 0.1, 8)[None]


class Net(nn.Module):
    """A denoiser that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.time = nn.Linear(1, 8)

    def forward(
        self, x: Tensor, timestep: Tensor | float, prompt: Tensor | None = None
    ) -> tuple[Tensor]:
        t = torch.as_tensor(timestep, dtype=x.dtype).reshape(-1, 1) / 1000
        h = self.first(x) + self.time(t)[:, :, None, None]
        h = h if prompt is None else h + prompt[:, :, None, None]
        return (self.last(h.sin()) + x / 2,)


def wrapped(**config: Any) -> SparseModule:
    options = {"backend": "eager", "dilate": 0, "dense_share": 0.0, "dense_above": 1.0}
    return sparsify(Net().eval(), **{**options, **config})


@torch.no_grad()
def ddim(
    net: Any, steps: int = 10, seed: int = 0, guidance: str = "none", x: Tensor | None = None
) -> Tensor:
    """A run from noise, with guidance in one call of two items or in two calls."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, *GRID, generator=generator) if x is None else x
    for t in scheduler.timesteps:
        if guidance == "batch":
            first, second = net(torch.cat([x, 0.9 * x]), t)[0].chunk(2)
        elif guidance == "calls":
            first, second = net(x, t, PROMPT)[0], net(x, t, -PROMPT)[0]
        else:
            first = second = net(x, t)[0]
        x = scheduler.step(first + 2 * (second - first), t, x).prev_sample
    return x


@settings(max_examples=20)
@given(
    keys=st.sets(st.integers(1, 9)),
    order=st.integers(0, 2),
    guidance=st.sampled_from(["none", "batch", "calls"]),
)
def test_a_run_equals_its_definition(keys: set[int], order: int, guidance: str) -> None:
    """Written out: what a step takes is the sum that its row says."""
    net, schedule = Net().eval(), Schedule.at({0, *keys}, 10, order)
    known: dict[tuple[int, int], Tensor] = {}
    times: list[float] = []

    def by_hand(x: Tensor, t: Tensor, *prompt: Tensor) -> tuple[Tensor]:
        times.append(float(t))
        step, number = len(set(times)) - 1, times.count(float(t)) - 1
        if step in schedule.keys:
            known[step, number] = net(x, t, *prompt)[0]
            return (known[step, number],)
        parts = [w * known[key, number] for key, w in schedule.rows[step]]
        return (torch.stack(parts).sum(0),)

    sparse = wrapped()
    with sparse.sampling(schedule) as sampling:
        got = ddim(sparse, guidance=guidance)
    torch.testing.assert_close(got, ddim(by_hand, guidance=guidance), rtol=1e-5, atol=1e-6)
    calls = 2 if guidance == "calls" else 1
    assert sampling.called == calls * len(schedule.keys)
    assert sampling.called + sampling.forecast == calls * 10


@pytest.mark.parametrize("guidance", ["none", "batch", "calls"])
def test_with_every_step_a_key_it_is_the_model_bit_for_bit(guidance: str) -> None:
    sparse = wrapped()
    with sparse.sampling(Schedule.every(1, 10)):
        got = ddim(sparse, guidance=guidance)
    assert torch.equal(got, ddim(sparse, guidance=guidance))


def test_a_second_run_begins_again() -> None:
    sparse, schedule = wrapped(), Schedule.every(3, 10, order=1)
    with sparse.sampling(schedule) as sampling:
        first, other, again = (ddim(sparse, seed=seed) for seed in (0, 1, 0))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert sampling.called == 3 * len(schedule.keys)


@pytest.mark.parametrize("make", [HeunDiscreteScheduler, DPMSolverMultistepScheduler])
@torch.no_grad()
def test_solvers_of_second_order(make: Callable[[], Any]) -> None:
    """Two calls a step have timesteps of their own; with all steps keys nothing changes."""
    sparse, calls = wrapped(), []

    def run() -> Tensor:
        scheduler = make()
        scheduler.set_timesteps(6)
        calls.extend(scheduler.timesteps)
        x = torch.randn(1, 3, *GRID, generator=torch.Generator().manual_seed(0))
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(sparse(scheduler.scale_model_input(x, t), t)[0], t, x).prev_sample
        return x

    want = run()
    with sparse.sampling(Schedule.every(1, 6)):
        assert torch.equal(run(), want)
    with sparse.sampling(Schedule.every(2, 6, order=1)) as sampling:
        assert run().isfinite().all()
    assert sampling.forecast >= 3 and sampling.called + sampling.forecast == len(calls) // 3


def test_a_run_longer_than_its_schedule_is_refused() -> None:
    sparse = wrapped()
    with sparse.sampling(Schedule.every(2, 8)), pytest.raises(SessionError, match="more steps"):
        ddim(sparse, steps=10)


def test_calibrated_timesteps_tell_the_step() -> None:
    """A run may start late; what was not computed in it is no key of it."""
    sparse, full = wrapped(), Schedule.at([0, 4, 8], 10)
    times = tuple(float(t) for t in range(901, 0, -100))
    schedule = Schedule(full.rows, timesteps=times)
    x = torch.randn(1, 3, *GRID)
    with torch.no_grad(), sparse.sampling(schedule) as sampling:
        for t in times[2:]:
            sparse(x, torch.tensor(t))
        # Steps 2 and 3 would be forecast from step 0, 5 to 7 from 4, 9 from 8.
        assert (sampling.called, sampling.forecast) == (4, 4)
        with pytest.raises(SessionError, match=r"timestep 540, the nearest .* is 501 \(step 4\)"):
            sparse(x, torch.tensor(540.0))


def test_numbers_may_be_the_timestep_and_without_any_there_is_no_step() -> None:
    sparse = wrapped()
    with torch.no_grad(), sparse.sampling(Schedule.every(2, 4)) as sampling:
        for t in (3, 2, 1, 0):
            sparse(torch.randn(1, 3, *GRID), t)
    assert sampling.called == 2
    plain = sparsify(nn.Conv2d(3, 3, 1).eval(), backend="eager")
    with plain.sampling(Schedule.every(2, 4)), pytest.raises(SessionError, match="no input"):
        plain(torch.randn(1, 3, *GRID))


def test_the_caller_may_write_to_what_it_was_given() -> None:
    sparse, x = wrapped(), torch.randn(1, 3, *GRID)
    with torch.no_grad(), sparse.sampling(Schedule.every(3, 3)):
        first = sparse(x, 9)[0]
        want = first.clone()
        first.zero_()
        second = sparse(x, 8)[0]
        assert torch.equal(second, want)
        second.zero_()
        assert torch.equal(sparse(x, 7)[0], want)


@pytest.mark.parametrize("guidance", ["none", "batch", "calls"])
def test_edits_forecast_their_changes(guidance: str) -> None:
    """Outside the mask a run stays as it was recorded, bit for bit; with every step a key it is the
    edited run."""
    sparse = wrapped()
    x = torch.randn(1, 3, *GRID)
    edited = torch.where(MASK, x + 0.5, x)
    with sparse.recording() as session:
        recorded = ddim(sparse, guidance=guidance, x=x)
    with session.editing(MASK):
        want = ddim(sparse, guidance=guidance, x=edited)
    with session.editing(MASK, Schedule.every(1, 10)):
        assert torch.equal(ddim(sparse, guidance=guidance, x=edited), want)
    with session.editing(MASK, Schedule.every(3, 10, order=1)) as editing:
        got = ddim(sparse, guidance=guidance, x=edited)
    assert editing.forecaster is not None and editing.forecaster.forecast
    assert torch.equal(got[..., ~MASK], recorded[..., ~MASK])
    with sparse.sampling(Schedule.every(3, 10, order=1)):
        alone = ddim(sparse, guidance=guidance, x=x)
    assert (got - want).norm() < 0.5 * (alone - recorded).norm()


def test_what_was_forecast_when_recorded_keeps_outputs_alone() -> None:
    sparse, schedule = wrapped(), Schedule.every(5, 10)
    with sparse.recording() as whole:
        ddim(sparse)
    with sparse.recording(schedule) as session:
        recorded = ddim(sparse)
    assert session.nbytes == sum(b.nbytes for b in whole.calls[::5]) < whole.nbytes / 4
    with sparse.sampling(schedule):
        torch.testing.assert_close(ddim(sparse), recorded)
    with session.editing(MASK, schedule):
        torch.testing.assert_close(ddim(sparse), recorded)
    with session.editing(MASK):  # without it, those steps run the dense model
        edited = ddim(sparse)
    assert torch.equal(edited[..., ~MASK], recorded[..., ~MASK])


@torch.no_grad()
def test_a_run_that_was_broken_off_leaves_nothing_behind() -> None:
    """At its first step, by an error inside of the model or outside; later, and at the same noise
    with other calls, where nothing tells the runs apart, it is an error."""
    sparse, schedule = wrapped(), Schedule.every(3, 6)
    x, other = torch.randn(2, 1, 3, *GRID)
    with sparse.sampling(schedule):
        sparse(x, 60.0)
        first = sparse(other, 60.0)[0]
        assert torch.equal(sparse(other, 50.0)[0], first)
    with sparse.sampling(schedule):
        sparse(x, 60.0)
        with pytest.raises(RuntimeError):
            sparse(x[:, :2], 40.0)
        first = sparse(other, 60.0)[0]
        assert torch.equal(sparse(other, 50.0)[0], first)
    with sparse.sampling(schedule):
        sparse(x, 60.0, PROMPT)
        sparse(x, 60.0, -PROMPT)
        sparse(x, 50.0, -PROMPT)
        with pytest.raises(SessionError, match="begin the next one in a context of its own"):
            sparse(x, 40.0, -PROMPT)
