"""Half precision, memory formats and autocast: an update is no worse than the dense run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage import oracle
from sparsify import sparsify
from sparsify.signature import bind
from tests.small import corner, small_inputs, small_unet

HALF = (torch.float16, torch.bfloat16)
Inputs = tuple[Tensor, ...]


def edit(inputs: Inputs) -> Inputs:
    """New values inside the mask, which every dtype holds exactly."""
    image, *rest = inputs
    new = torch.where(corner(), torch.randn_like(image), image)
    return new.bfloat16().to(torch.float16).float(), *rest


def coarse() -> Inputs:
    """Inputs that every dtype holds exactly."""
    return tuple(value.bfloat16().to(torch.float16).float() for value in small_inputs())


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return tuple(value.to(dtype) for value in inputs)


def blended(model: nn.Module, before: Inputs, after: Inputs) -> Tensor:
    """The blended dense run in float32."""
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(*before)
    leaves = [bind(model, inputs, {}).leaves for inputs in (before, after)]
    result: Tensor = oracle(baseline, sparse.plan(corner()), *leaves)[0]
    return result


def error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want).square().mean().sqrt())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, backend: str) -> None:
    model = small_unet()
    model.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    half = copy.deepcopy(model).to(dtype)
    before = coarse()
    after = edit(before)
    dense = error(half(*cast(after, dtype)), model(*after))
    sparse = sparsify(half, backend=backend)
    _, baseline = sparse.record(*cast(before, dtype))
    got = sparse.update(baseline, *cast(after, dtype), mask=corner())
    assert got.dtype == dtype
    assert error(got, blended(model, before, after)) <= 2 * dense


@torch.no_grad()
def test_channels_last() -> None:
    model, before = small_unet(), small_inputs()
    after = edit(before)
    wanted = sparsify(model, backend="eager")
    _, baseline = wanted.record(*before)
    want = wanted.update(baseline, *after, mask=corner())
    model = model.to(memory_format=torch.channels_last)
    before, after = (
        (x[0].contiguous(memory_format=torch.channels_last), *x[1:]) for x in (before, after)
    )
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(*before)
    torch.testing.assert_close(sparse.update(baseline, *after, mask=corner()), want)


@torch.no_grad()
def test_autocast() -> None:
    """What the model casts itself is part of the graph; updates need no autocast of their own."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_unet()

        def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(sample, timestep, context).float()

    model, before = Cast().eval(), small_inputs()
    after = edit(before)
    dense = error(model(*after), model.inner(*after))
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(*before)
    got = sparse.update(baseline, *after, mask=corner())
    assert error(got, blended(model.inner, before, after)) <= 2 * dense
