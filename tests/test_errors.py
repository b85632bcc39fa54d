"""Bad input: each with an error of this package that says what is wrong and how to fix it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sparsify import (
    BaselineError,
    CaptureError,
    ConfigError,
    GridError,
    MaskError,
    SignatureError,
    SparseModule,
    SparsifyConfig,
    sparsify,
)
from sparsify.signature import bind
from tests.small import corner, small_inputs, small_unet


@pytest.fixture(scope="module")
def sparse() -> SparseModule:
    module = sparsify(small_unet(), backend="eager", dilate=1)
    module.record(*small_inputs())
    return module


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.zeros(16, dtype=torch.bool), "rank 1"),
        (torch.zeros(1, 3, 16, 16), r"mask.any\(1\)"),
        (torch.zeros(1, 16, 16, 3), r"channels last.*mask.any\(-1\)"),
        (np.zeros((16, 16, 3), np.uint8), r"channels last.*mask.any\(-1\)"),
        (torch.full((16, 16), -1.0), "mask > 0"),
        (torch.full((16, 16), float("nan")), "nan_to_num"),
        (torch.zeros(16, 16, dtype=torch.complex64), r"mask.abs\(\) > 0"),
        (np.full((16, 16), "edited"), "give numbers"),
        (Image.new("RGBA", (16, 16)), r"getchannel\('A'\)"),
        (Image.new("RGB", (16, 16)), r"mask.convert\('L'\)"),
        (Image.new("P", (16, 16)), r"mask.convert\('L'\)"),
        (torch.zeros(16, 15, dtype=torch.bool), r"grid \(16, 16\)"),
        (torch.zeros(8, 8, dtype=torch.bool), r"grid \(16, 16\).*adaptive_max_pool2d"),
        (torch.zeros(32, 64), r"grid \(16, 16\)"),
        (torch.zeros(0, 0), r"grid \(16, 16\)"),
        (torch.zeros(3, 16, 16, dtype=torch.bool), "3 items"),
        (torch.zeros(16, 16, dtype=torch.bool, device="meta"), "on meta"),
        ([[True]], "list"),
        (None, "there is no mask"),
    ],
)
def test_bad_masks(sparse: SparseModule, mask: object, text: str) -> None:
    with pytest.raises(MaskError, match=text):
        sparse.plan(mask)  # type: ignore[arg-type]
    _, baseline = sparse.record(*small_inputs())
    with pytest.raises(MaskError, match=text):
        sparse.update(baseline, *small_inputs(), mask=mask)  # type: ignore[call-overload]


def test_no_mask(sparse: SparseModule) -> None:
    with sparse.recording() as session:
        sparse(*small_inputs())
    (baseline,) = session.calls
    with pytest.raises(MaskError, match="there is no mask: give `mask`, bool"):
        sparse.update(baseline, *small_inputs())  # type: ignore[call-overload]
    for make in (sparse.plan, lambda: sparse.restrict(baseline), session.restrict):
        with pytest.raises(MaskError, match="there is no mask"):
            make()
    with pytest.raises(MaskError, match="there is no mask"), session.editing():
        pass


def test_plan_before_record() -> None:
    with pytest.raises(MaskError, match="record a run first"):
        sparsify(small_unet()).plan(corner())


def test_equal_masks_of_a_batch_are_one(sparse: SparseModule) -> None:
    x, *rest = small_inputs(2)
    _, baseline = sparse.record(x, *rest)
    update = sparse.update(baseline, 2 * x, *rest, mask=torch.stack([corner(), corner()]))
    assert torch.equal(update, sparse.update(baseline, 2 * x, *rest, mask=corner()))


def test_nan_stays_inside_the_mask(sparse: SparseModule) -> None:
    x, *rest = small_inputs()
    output, baseline = sparse.record(x, *rest)
    plan = sparse.plan(corner())
    poisoned = torch.where(corner(), float("nan"), x)
    update = sparse.update(baseline, poisoned, *rest, mask=plan)
    spoilt = update.isnan().all(1)[0]
    assert spoilt[corner()].all() and not spoilt[~sparse.report().masks[16, 16]].any()
    assert torch.equal(update[..., ~spoilt], output[..., ~spoilt])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, t, c: (x[..., :8], t, c), "sample is"),
        (lambda x, t, c: (x.double(), t, c), "torch.float64"),
        (lambda x, t, c: (x.expand(2, -1, -1, -1), t, c), r"\[2, 3, 16, 16\]"),
        (lambda x, t, c: (x, 7, c), "timestep is 7"),
        (lambda x, t, c: (x, t), "context"),
    ],
)
def test_update_with_another_signature(sparse: SparseModule, change: object, text: str) -> None:
    _, baseline = sparse.record(*small_inputs())
    with pytest.raises(SignatureError, match=text):
        sparse.update(baseline, *change(*small_inputs()), mask=corner())  # type: ignore[operator]


class Conditioned(nn.Module):
    """Conditions in a dict, as SDXL's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, added: dict[str, Any]) -> Tensor:
        return self.conv(x) * added["scale"] + added["text"]["shift"]


def test_the_order_of_keys_means_nothing() -> None:
    sparse = sparsify(Conditioned().eval(), backend="eager")
    x, scale, text = torch.randn(1, 3, 8, 8), torch.ones(1), {"shift": torch.ones(1), "b": 1}
    _, baseline = sparse.record(x, {"text": text, "scale": scale})
    swapped = {"scale": scale, "text": dict(reversed(text.items()))}
    mask = torch.ones(8, 8, dtype=torch.bool)
    got = sparse.update(baseline, x, added=swapped, mask=mask)
    torch.testing.assert_close(got, sparse(x, swapped))


def test_keys_that_cannot_be_sorted_keep_their_order() -> None:
    model, x = Conditioned().eval(), torch.zeros(1, 3, 8, 8)
    call = bind(model, (x, {"b": 1, 2: 0, "a": OrderedDict(d=1, c=2)}), {})
    assert list(call.args[1]) == ["b", 2, "a"] and list(call.args[1]["a"]) == ["d", "c"]


def test_baseline_of_another_model(sparse: SparseModule) -> None:
    other = sparsify(small_unet(), backend="eager")
    _, baseline = other.record(*small_inputs())
    with pytest.raises(BaselineError, match="another model"):
        sparse.update(baseline, *small_inputs(), mask=corner())


def test_baseline_of_other_weights() -> None:
    model = small_unet()
    sparse = sparsify(model, backend="eager", policy="exact")
    x, *rest = small_inputs()
    _, baseline = sparse.record(x, *rest)
    model.load_state_dict(small_unet(seed=3).state_dict())
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(baseline, x, *rest, mask=corner())
    _, baseline = sparse.record(x, *rest)
    edited = torch.where(corner(), 0.0, x)
    update = sparse.update(baseline, edited, *rest, mask=corner())
    torch.testing.assert_close(update, model(edited, *rest), rtol=1e-4, atol=1e-5)


def test_replaced_parameters_are_captured_again() -> None:
    model = small_unet()
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(*small_inputs())
    model.load_state_dict(small_unet(seed=3).state_dict(), assign=True)
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(baseline, *small_inputs(), mask=corner())
    output, _ = sparse.record(*small_inputs())
    torch.testing.assert_close(output, small_unet(seed=3)(*small_inputs()))  # in another order


@pytest.mark.parametrize(
    ("grids", "text"),
    [
        ({"timestep": (4, 4)}, "timestep"),
        ({"context": (2, 2)}, "5 tokens"),
        ({"sample": (8, 32)}, "not on the grid"),
        ({"latents": (16, 16)}, "not an input"),
    ],
)
def test_grids_that_do_not_fit(grids: dict[str, tuple[int, int]], text: str) -> None:
    with pytest.raises(GridError, match=text):
        sparsify(small_unet(), backend="eager", grids=grids).record(*small_inputs())


@pytest.mark.parametrize("grids", [[32, 32], (32, 32), {"x": 32}, {"x": (0, 3)}, {"x": (2, 2, 2)}])
def test_grids_of_the_wrong_kind(grids: Any) -> None:
    with pytest.raises(ConfigError, match=r"pass {name of the input: \(H, W\)}"):
        sparsify(small_unet(), grids=grids)


def test_no_spatial_input() -> None:
    with pytest.raises(GridError, match="name the token inputs"):
        sparsify(nn.Linear(4, 4).eval(), backend="eager").record(torch.randn(1, 6, 4))


def test_training_mode() -> None:
    with pytest.raises(CaptureError, match="training mode"):
        sparsify(small_unet().train()).record(*small_inputs())


class Moody(nn.Module):
    """Control flow that depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


def test_data_dependent_control_flow_names_the_line() -> None:
    with pytest.raises(CaptureError, match=r"Moody cannot be captured at .*: if x.sum\(\) > 0:"):
        sparsify(Moody().eval()).record(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"policy": "sloppy"}, "policy"),
        ({"dilate": -1}, "dilate"),
        ({"dense_share": 1.5}, "dense_share"),
        ({"colour": 3}, "colour"),
    ],
)
def test_bad_configuration(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        sparsify(small_unet(), **fields)


def test_out_of_memory_leaves_nothing_behind() -> None:
    """A real shortage, in a process of its own: neither the session nor the model keep a trace."""
    script = """
        import resource, torch
        from sparsify import sparsify
        from tests.small import small_unet
        torch.set_num_threads(1)
        def inputs(size):
            return torch.randn(1, 3, size, size), torch.tensor(1.0), torch.randn(1, 5, 16)
        sparse = sparsify(small_unet(), backend="eager", dense_share=0.0)
        big, small = inputs(192), inputs(16)
        sparse.graphs(*big)
        expected, _ = sparse.record(*small)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 40 * 2**20, resource.RLIM_INFINITY))
        with sparse.recording() as session:
            try:
                sparse(*big)
            except (RuntimeError, MemoryError) as error:
                print("failed:", type(error).__name__)
        print("calls:", len(session.calls))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        print("same:", torch.equal(sparse.record(*small)[0], expected))
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    # What is freed goes back at once: memory kept from the capture would make up the shortage.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(run, capture_output=True, text=True, check=True, env=settings)
    assert result.stdout.split() == ["failed:", "RuntimeError", "calls:", "0", "same:", "True"]


@pytest.mark.parametrize(
    ("grid", "pixels"),
    [((256, 256), 5), ((32, 64), 5), ((64, 16), 2), ((16, 16), 2), ((8, 9), 1), ((2, 2), 1)],
)
def test_edits_are_widened_by_the_grid(grid: tuple[int, int], pixels: int) -> None:
    assert SparsifyConfig().dilation(grid) == pixels
    assert SparsifyConfig(dilate=0).dilation(grid) == 0
    assert SparsifyConfig(dilate=7).dilation(grid) == 7
