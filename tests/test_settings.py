"""Torch's settings around a call: part of what a program is known by, or without effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from sparsify import sparsify
from tests.small import corner, small_inputs, small_unet


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AUTOCAST = pytest.param(lambda: torch.autocast("cpu", torch.bfloat16), id="autocast")
GRAD_MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize(
    "setting", [AUTOCAST, pytest.param(lambda: default_dtype(torch.float64), id="default dtype")]
)
@torch.no_grad()
def test_each_setting_has_its_own_program(setting: Any) -> None:
    """What is recorded under a setting is what the model computes under it."""
    sparse, model = sparsify(small_unet(), backend="eager", policy="exact"), small_unet()
    image, *rest = small_inputs()
    edited = torch.where(corner(), image + 1, image), *rest
    everything = torch.ones_like(corner())
    for around in (setting, nullcontext, setting):
        with around():
            output, baseline = sparse.record(image, *rest)
            want = model(image, *rest)
            after = model(*edited)
        assert output.dtype == want.dtype
        half = {"rtol": 0.05, "atol": 0.05}  # each cast rounds to 8 bits, in another order
        close = {"rtol": 1e-4, "atol": 1e-5} if want.dtype is torch.float32 else half
        torch.testing.assert_close(output, want, **close)
        for later in (setting, nullcontext):  # an update is that of the recorded setting
            with later():
                got = sparse.update(baseline, *edited, mask=everything)
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, after, **close)
    assert len(sparse._engine._programs) == 2


@pytest.mark.parametrize("recorded", GRAD_MODES)
@pytest.mark.parametrize("updated", GRAD_MODES)
def test_grad_modes_make_no_difference(recorded: Any, updated: Any) -> None:
    sparse = sparsify(small_unet(), backend="eager")
    image, *rest = small_inputs()
    with recorded():
        output, baseline = sparse.record(image, *rest)
    with updated():
        _, baseline = sparse.update(baseline, image, *rest, mask=corner(), commit=True)
        got = sparse.update(baseline, image.clone(), *rest, mask=corner())
    assert not output.requires_grad and not got.requires_grad
    assert not got.is_inference()
    torch.testing.assert_close(got, output, rtol=1e-4, atol=1e-5)
