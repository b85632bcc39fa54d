"""Steps that read no picture, made in one batch; and prior noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify import ConfigError, PriorNoise, Schedule, SparseModule, sparsify
from tests.test_reuse import unet

STEPS = 8
WORDS = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)


@pytest.fixture(scope="module", name="sparse")
def _sparse() -> SparseModule:
    return sparsify(unet(), backend="eager")


def times() -> list[int]:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    return [int(t) for t in scheduler.timesteps]


@torch.no_grad()
def sampled(net: Any, guidance: str) -> Tensor:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        if guidance == "batch":
            free, bound = net(torch.cat([x, x]), t, WORDS).sample.chunk(2)
        else:
            free, bound = (net(x, t, WORDS[i : i + 1]).sample for i in (0, 1))
        x = scheduler.step(free + 2 * (bound - free), t, x).prev_sample
    return x


@settings(max_examples=2)
@given(st.sets(st.integers(1, STEPS - 1)), st.sampled_from(["batch", "calls"]))
def test_steps_in_one_batch_are_the_steps_one_by_one(
    sparse: SparseModule, keys: set[int], guidance: str
) -> None:
    schedule = Schedule.at({0, *keys}, STEPS, 1, "encoder").for_timesteps(times())
    with sparse.sampling(schedule):
        want = sampled(sparse, guidance)
    with sparse.sampling(schedule, ahead=2) as sampling:
        got = sampled(sparse, guidance)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sampled(sparse, guidance), want, rtol=1e-4, atol=1e-5)
    calls = 1 if guidance == "batch" else 2
    assert sampling.called == 2 * calls * len(schedule.keys)


@torch.no_grad()
def test_other_words_in_the_middle_are_seen(sparse: SparseModule) -> None:
    """A step that was made ahead is made again for other inputs than were known then."""
    schedule = Schedule.at([0], 3, reuse="encoder").for_timesteps([3, 2, 1])
    x, outputs = torch.randn(2, 4, 16, 16), []
    for ahead in (1, 2):
        with sparse.sampling(schedule, ahead=ahead):
            for t in (3, 2):
                sparse(x, torch.tensor(t), WORDS)
            outputs.append(sparse(x, torch.tensor(1), 2 * WORDS).sample)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_reads_the_picture_cannot_be_made_ahead(sparse: SparseModule) -> None:
    with (
        pytest.raises(ConfigError, match="knows its timesteps"),
        sparse.sampling(Schedule.every(4, STEPS, reuse="encoder"), ahead=2),
    ):
        pass
    schedule = Schedule.every(4, STEPS, reuse="deep").for_timesteps(times())
    with sparse.sampling(schedule, ahead=2), pytest.raises(ConfigError, match="read the picture"):
        sampled(sparse, "batch")


def test_prior_noise_is_added_as_published() -> None:
    """Before each step whose timestep is below 500; by a loop, and by a pipeline's callback."""
    noise, latents = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    prior = PriorNoise(noise)
    assert prior(latents, 500) is latents
    torch.testing.assert_close(prior(latents, torch.tensor(499)), latents + 0.003 * noise)
    pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=torch.tensor([700, 499, 200])))
    seen = [
        prior.on_step_end(pipe, i, t, {"latents": latents})["latents"] is not latents
        for i, t in enumerate(pipe.scheduler.timesteps)
    ]
    assert seen == [True, True, False]
    with pytest.raises(ConfigError, match="noise that this run begins with"):
        prior(latents[..., :1], 0)
