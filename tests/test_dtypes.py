"""Half precision, memory formats and autocast: an update is no worse than the dense run."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify import sparsify
from sparsify.oracle import oracle
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
    result: Tensor = oracle(sparse._engine.program_of(baseline), sparse.plan(corner()), *leaves)[0]
    return result


def error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want).square().mean().sqrt())


@pytest.mark.parametrize(
    ("dtype", "backend"), [*((dtype, "eager") for dtype in HALF), (torch.bfloat16, "inductor")]
)
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


class Wide(nn.Module):
    """Sums of large maps of few channels: what half precision cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 128, 3, padding=1), nn.Conv2d(128, 3, 3, padding=1)
        self.norm = nn.GroupNorm(4, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(nn.functional.silu(self.norm(self.enter(x))))


@settings(max_examples=settings.default.max_examples // 10)
@given(
    dtype=st.sampled_from(HALF),
    side=st.sampled_from([64, 72]),
    share=st.sampled_from([0.31, 0.62, 0.9]),
    scale=st.sampled_from([1.0, 4.0]),
    seed=st.integers(0, 99),
)
@example(torch.float16, 64, 0.62, 4.0, 0)
@torch.no_grad()
def test_half_precision_on_large_maps(
    dtype: torch.dtype, side: int, share: float, scale: float, seed: int
) -> None:
    """An update is as near to that in float32 as the dense run is to its own; an unchanged input
    gives the baseline back as nearly, also after a commit. Twice: each errs on its own."""
    torch.manual_seed(seed)
    half, mask = Wide().eval().to(dtype), torch.zeros(side, side, dtype=torch.bool)
    whole = copy.deepcopy(half).float()
    mask[: round(share * side)] = True
    before = (scale * torch.randn(1, 4, side, side)).to(dtype)
    after = torch.where(mask, 2 * scale * torch.randn_like(before), before)
    wide, sparse = (sparsify(m, backend="eager", dilate=1, dense_above=1.0) for m in (whole, half))
    want = wide.update(wide.record(before.float())[1], after.float(), mask=mask)
    output, baseline = sparse.record(before)
    got, later = sparse.update(baseline, after, mask=mask, commit=True)
    dense, exact = half(after), whole(after.float())
    assert error(got, want) <= 2 * error(dense, exact)
    for recorded, image, wanted in ((baseline, before, output), (later, after, got)):
        again = sparse.update(recorded, image, mask=mask)
        assert error(again, wanted.float()) <= 2 * error(dense, exact)


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
