"""Schedules fitted to a run hold for other noise and other labels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sparsify import ConfigError, Schedule, SessionError, SparseModule, sparsify
from sparsify.calibrate import _pictures, _psnr
from sparsify.fit import Fit
from tests.nets.ideal import Ideal, sampled


def wrapped() -> SparseModule:
    return sparsify(Ideal().eval(), backend="eager")


def unseen(sparse: SparseModule, schedule: Schedule) -> list[float]:
    """PSNR to the whole runs, of noise and labels that no calibration saw."""
    found = []
    for seed in (1, 2, 3):
        want = sampled(sparse, seed)
        with sparse.sampling(schedule) as sampling:
            got = sampled(sparse, seed)
        assert sampling.called == len(schedule.keys)
        found.append(_psnr(_pictures(got), _pictures(want)))
    return found


@pytest.mark.parametrize(("calls", "decibels"), [(6, 29), (9, 33), (17, 45)])
def test_fitted_schedules_beat_equal_steps(calls: int, decibels: float) -> None:
    sparse = wrapped()
    schedule = sparse.calibrate(lambda: sampled(sparse, 0), calls=calls)
    assert len(schedule.keys) == calls and schedule.psnr is not None
    keys = [round(i * 49 / calls) for i in range(calls)]
    equal = unseen(sparse, Schedule.at(keys, 50, order=1))
    found = unseen(sparse, schedule)
    assert min(found) > decibels and np.mean(found) > np.mean(equal) + 1.5
    assert abs(np.mean(found) - schedule.psnr) < 8


class Counted(Ideal):
    calls = 0

    def forward(self, *args: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(*args)


def test_a_wanted_psnr_is_reached() -> None:
    """At the price of three whole runs at most, and not by every step."""
    sparse = sparsify(Counted().eval(), backend="eager")
    schedule = sparse.calibrate(lambda: sampled(sparse, 0), psnr=40.0)
    assert Counted.calls <= 3 * 50
    assert schedule.psnr is not None and schedule.psnr >= 40 and len(schedule.keys) <= 20
    assert np.mean(unseen(sparse, schedule)) >= 39.5


@settings(max_examples=20)
@given(st.integers(0, 100), st.integers(3, 7), st.integers(2, 4))
def test_keys_are_the_best_there_are(seed: int, steps: int, calls: int) -> None:
    """Of all choices, tried one by one; weights are those of least squares."""
    made = torch.Generator().manual_seed(seed)
    outputs = torch.randn(steps, 12, generator=made).cumsum(0)
    fit, calls = Fit(outputs), min(calls, steps)

    def left(rows: Any) -> float:
        total = 0.0
        for step, row in enumerate(rows):
            forecast = torch.stack([w * outputs[k] for k, w in row]).sum(0)
            total += float((forecast - outputs[step]).double().square().mean())
        return total

    def fitted(keys: tuple[int, ...]) -> list[Any]:
        rows: list[Any] = []
        for step in range(steps):
            known = [k for k in keys if k < step][-2:]
            if step in keys:
                rows.append(((step, 1.0),))
                continue
            solved = torch.linalg.lstsq(outputs[known].double().T, outputs[step].double())
            rows.append(tuple(zip(known, solved.solution.tolist(), strict=True)))
        return rows

    choices = [(0, *rest) for rest in itertools.combinations(range(1, steps), calls - 1)]
    best = min(left(fitted(keys)) for keys in choices)
    assert left(fit.rows(calls, longest=steps)) == pytest.approx(best, rel=1e-3, abs=1e-6)


def test_what_does_not_change_and_what_moves_on_a_line_is_forecast_exactly() -> None:
    start, slope = torch.randn(2, 40)
    for outputs in (start.expand(9, 40), start + torch.arange(9)[:, None] * slope):
        rows = Fit(outputs).rows(3, longest=9)
        for step, row in enumerate(rows):
            if step > 1 or torch.equal(outputs[0], outputs[1]):
                made = torch.stack([w * outputs[k] for k, w in row]).sum(0)
                torch.testing.assert_close(made, outputs[step], rtol=1e-3, atol=1e-3)


def test_errors() -> None:
    sparse = wrapped()
    with pytest.raises(ConfigError, match="either calls"):
        sparse.calibrate(lambda: None)
    with pytest.raises(SessionError, match="0 steps"):
        sparse.calibrate(lambda: torch.ones(2, 2), calls=3)
    with pytest.raises(ConfigError, match="has to return the pictures"):
        sparse.calibrate(lambda: None, calls=3)
    with pytest.raises(ConfigError, match="calls=51 of 50"):
        sparse.calibrate(lambda: sampled(sparse, 0), calls=51)
    with pytest.raises(ConfigError, match="at most 2 apart"):
        sparse.calibrate(lambda: sampled(sparse, 0), calls=5, longest=2)
    seeds = iter(range(9))
    with pytest.raises(SessionError, match="other noise each time"):
        sparse.calibrate(lambda: sampled(sparse, next(seeds)), calls=5)


def test_pictures_of_any_kind() -> None:
    made = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    for picture in (made, torch.from_numpy(made), Image.fromarray(made), [Image.fromarray(made)]):
        (found,) = _pictures(picture)
        assert np.array_equal(found, made)
    assert _psnr([made / 1.0], [made / 1.0]) == float("inf")
    assert _psnr([made + 2.55], [made / 1.0]) == pytest.approx(40, abs=0.1)


@pytest.mark.parametrize("make", [EulerAncestralDiscreteScheduler, DDPMScheduler])
@torch.no_grad()
def test_samplers_that_add_noise_are_refused(make: Any) -> None:
    """What an earlier step gave knows nothing of noise that was added since."""
    sparse = wrapped()

    def run() -> Tensor:
        scheduler, made = make(), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(12)
        x = torch.randn(1, 3, 16, 16, generator=made) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noise = sparse(scheduler.scale_model_input(x, t), t, torch.tensor([1]))
            x = scheduler.step(noise, t, x, generator=made).prev_sample
        return x

    with pytest.raises(SessionError, match=r"adds noise before step \d+"):
        sparse.calibrate(run, calls=4)


@pytest.mark.parametrize(
    "make",
    [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler],
)
@torch.no_grad()
def test_samplers_that_add_none_are_not(make: Any) -> None:
    sparse = wrapped()

    def run() -> Tensor:
        scheduler = make()
        scheduler.set_timesteps(12)
        made = torch.Generator().manual_seed(0)
        x = torch.randn(1, 3, 16, 16, generator=made) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noise = sparse(scheduler.scale_model_input(x, t), t, torch.tensor([1]))
            x = scheduler.step(noise, t, x).prev_sample
        return x

    assert (sparse.calibrate(run, calls=6).psnr or 0) > 15
