"""What surrounds a call (autocast, torch's defaults, other threads) changes no graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from sparsify.codegen.ambient import as_captured
from sparsify.codegen.overlay_attention import key_bias
from sparsify.passes.partition import attribute
from torch import Tensor, nn

import sparsify
from tests.small import corner, small_inputs, small_unet

MASK = corner()
SETTINGS = {"dilate": 0, "dense_share": 0.0}


def edited(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    image, timestep, _ = inputs
    return torch.where(MASK, image + 1, image), timestep, torch.ones(1, 5, 16)


def tiny() -> nn.Module:
    conv, leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
    return nn.Sequential(conv, nn.GroupNorm(4, 16), nn.SiLU(), leave).eval()


@contextmanager
def other_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AMBIENT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("dense_above", [0.0, 1.0])
@torch.no_grad()
def test_updates_are_the_same_bit_for_bit(ambient: str, dense_above: float) -> None:
    inputs = small_inputs()
    sparse = sparsify.sparsify(small_unet(), backend="eager", dense_above=dense_above, **SETTINGS)
    _, baseline = sparse.record(*inputs)
    after = edited(inputs)
    wanted, kept = sparse.update(baseline, *after, mask=MASK, commit=True)
    plain = sparse.update(baseline, *after, mask=MASK)
    with AMBIENT[ambient]():
        got, committed = sparse.update(baseline, *after, mask=MASK, commit=True)
        assert torch.equal(sparse.update(baseline, *after, mask=MASK), plain)
    assert torch.equal(got, wanted) and got.dtype == torch.float32
    for name, old in kept.values.items():
        new = committed.values[name]
        assert new.dtype == old.dtype and torch.equal(new, old)


@torch.no_grad()
def test_compiled_updates_too() -> None:
    image = small_inputs()[0]
    sparse = sparsify.sparsify(tiny(), dense_above=1.0, **SETTINGS)
    _, baseline = sparse.record(image)
    wanted = sparse.update(baseline, image + 1, mask=MASK)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparse.update(baseline, image + 1, mask=MASK), wanted)


def test_plans_do_not_hang_on_the_default_dtype() -> None:
    sparse = sparsify.sparsify(small_unet(), backend="eager", **SETTINGS)
    sparse.record(*small_inputs())
    wanted = next(iter(sparse.plan(MASK).tables.values()))
    with other_dtype():
        got = next(iter(sparse.plan(MASK).tables.values()))
    for name, old in wanted.tables.items():
        new = got.tables[name]
        assert new.dtype == old.dtype and torch.equal(new, old)


def test_the_bias_of_keys_is_what_the_kernel_reads() -> None:
    with other_dtype():
        assert key_bias(torch.tensor([1, 2, 2]), 4).dtype == torch.float32


def test_weights_are_arranged_as_they_are() -> None:
    sparse = sparsify.sparsify(small_unet(), backend="eager", **SETTINGS)
    inputs = small_inputs()
    graphs = sparse.graphs(*inputs)
    made, joint = graphs["constants"], graphs.joint
    with as_captured():
        values = made.module()
    assert values
    for name, value in zip(made.outputs, values, strict=True):
        assert torch.equal(getattr(joint, attribute(name)), value)


@torch.no_grad()
def test_an_exported_folder(tmp_path: Path) -> None:
    image = small_inputs()[0]
    sparse = sparsify.sparsify(tiny(), backend="eager", dense_above=1.0, **SETTINGS)
    wanted, _ = sparse.record(image)
    sparse.export(tmp_path / "under", image)
    loaded = sparsify.load(tmp_path / "under")
    output, baseline = loaded.record(image)
    torch.testing.assert_close(output, wanted)
    wanted = loaded.update(baseline, image + 1, mask=MASK)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loaded.record(image)[0], output)
        assert torch.equal(loaded.update(baseline, image + 1, mask=MASK), wanted)
