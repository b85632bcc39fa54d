"""Sessions: a real diffusers scheduler drives the network, first recorded, then edited."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from sparsify import SessionError, SparseModule, sparsify
from tests.small import corner, small_inputs, small_unet

STEPS, GUIDANCE = 20, 3.0


def sample(unet: torch.nn.Module, start: Tensor, steps: int = STEPS) -> Tensor:
    """Classifier-free guidance: each step is one call on a batch of two."""
    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(steps)
    _, _, prompt = small_inputs()
    context = torch.cat([torch.zeros_like(prompt), prompt])
    latents = start
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            pair = unet(torch.cat([latents, latents]), timestep.float(), context)
            empty, conditioned = pair.chunk(2)
            noise = empty + GUIDANCE * (conditioned - empty)
            latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents


def module(policy: str = "fixed") -> SparseModule:
    return sparsify(small_unet(), backend="eager", policy=policy, dilate=1)


def test_exact_session_equals_the_dense_sampler() -> None:
    start = small_inputs()[0]
    sparse = module("exact")
    with sparse.recording() as session:
        recorded = sample(sparse, start)
    torch.testing.assert_close(recorded, sample(small_unet(), start))
    assert len(session.calls) == STEPS
    edited = torch.where(corner(), start + 1, start)
    # Attention spreads the edit over the whole picture within one step: so does the mask.
    with session.editing(torch.ones_like(corner())):
        update = sample(sparse, edited)
    torch.testing.assert_close(update, sample(small_unet(), edited), rtol=1e-3, atol=1e-4)


def test_fixed_session_leaves_the_rest_as_recorded() -> None:
    start = small_inputs()[0]
    sparse = module()
    with sparse.recording() as session:
        recorded = sample(sparse, start)
    with session.editing(corner()):
        update = sample(sparse, torch.where(corner(), start + 1, start))
    reached = sparse.report().masks[16, 16]
    assert torch.equal(update[..., ~reached], recorded[..., ~reached])
    assert not torch.equal(update[..., corner()], recorded[..., corner()])


def test_outside_a_session_the_model_is_dense() -> None:
    sparse, inputs = module(), small_inputs()
    assert torch.equal(sparse(*inputs), small_unet()(*inputs))
    assert sparse.enter is sparse._engine.whole.enter


def test_wrong_number_of_calls() -> None:
    start = small_inputs()[0]
    sparse = module()
    with sparse.recording() as session:
        sample(sparse, start, 3)
    with pytest.raises(SessionError, match=r"call 1 of 3: timestep is"), session.editing(corner()):
        sample(sparse, start, 4)
    inputs = (torch.cat([start, start]), *session.calls[0].inputs[1:])
    with (
        pytest.raises(SessionError, match="3 calls were recorded but 1 made"),
        session.editing(corner()),
    ):
        sparse(*inputs)
    with pytest.raises(SessionError, match="call 4 of 3"), session.editing(corner()):
        for call in (*session.calls, session.calls[0]):
            sparse(torch.cat([start, start]), *call.inputs[1:])


def test_wrong_shape_names_the_call() -> None:
    sparse, inputs = module(), small_inputs()
    with sparse.recording() as session:
        sparse(*inputs)
        sparse(*inputs)
    with pytest.raises(SessionError, match=r"call 2 of 2: .*sample"), session.editing(corner()):
        sparse(*inputs)
        sparse(*small_inputs(2))


def test_nothing_recorded() -> None:
    sparse = module()
    with sparse.recording() as session:
        pass
    with pytest.raises(SessionError, match="nothing was recorded"), session.editing(corner()):
        pass


def test_an_error_inside_leaves_the_module_dense() -> None:
    sparse, inputs = module(), small_inputs()
    with pytest.raises(KeyError), sparse.recording():
        raise KeyError
    assert torch.equal(sparse(*inputs), small_unet()(*inputs))
