"""What baselines keep: less for one mask, nothing that a caller holds, large edits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsify import BaselineError, MaskError, SparseModule, sparsify
from tests.small import corner, small_inputs, small_unet


def module(**config: object) -> SparseModule:
    return sparsify(small_unet(), backend="eager", **{"dilate": 1, "dense_share": 0.0, **config})


def test_half_precision_takes_half_the_memory() -> None:
    narrow, wide = module(baseline_dtype=torch.bfloat16), module()
    _, small = narrow.record(*small_inputs())
    _, large = wide.record(*small_inputs())
    assert 0.5 * large.nbytes <= small.nbytes < 0.6 * large.nbytes
    assert narrow.report().kept < 0.6 * wide.report().kept
    x, *others = small_inputs()
    edited = torch.where(corner(), x + 1, x)
    got = narrow.update(small, edited, *others, mask=corner())
    want = wide.update(large, edited, *others, mask=corner())
    assert (got - want).abs().max() <= 2**-6 * want.abs().max()


def test_what_float16_cannot_hold_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)).eval()
    sparse = sparsify(model, backend="eager", baseline_dtype=torch.float16)
    with pytest.raises(BaselineError, match=r"bfloat16"):
        sparse.record(torch.full((1, 1, 8, 8), 1e6))


def test_restricted_baselines_are_smaller_and_refuse_the_rest() -> None:
    sparse = module()
    x, *others = small_inputs()
    _, baseline = sparse.record(x, *others)
    small = sparse.restrict(baseline, corner())
    assert small.nbytes < 0.7 * baseline.nbytes
    assert sparse.update(small, x, *others, mask=corner()[None]).shape == x.shape
    with pytest.raises(BaselineError, match="restricted"):
        sparse.update(small, x, *others, mask=corner(), commit=True)
    with pytest.raises(MaskError, match="restricted to another mask"):
        sparse.update(small, x, *others, mask=corner().flip(0))
    everything = torch.ones_like(corner())
    assert sparse.restrict(baseline, everything).nbytes == 0
    edited = x + 1
    got = sparse.update(sparse.restrict(baseline, everything), edited, *others, mask=everything)
    torch.testing.assert_close(got, small_unet()(edited, *others))


def test_sessions_restrict_all_calls() -> None:
    sparse, (x, *others) = module(), small_inputs()
    with sparse.recording() as session:
        sparse(x, *others)
    before = session.nbytes
    session.restrict(corner())
    assert session.nbytes < 0.7 * before
    with session.editing(corner()):
        sparse(x, *others)


def test_a_commit_keeps_the_recorded_input_outside_its_mask() -> None:
    """The dense run of a later, large edit reads it."""
    sparse = module(policy="exact", dilate=0)
    x, *others = small_inputs()
    _, baseline = sparse.record(x, *others)
    _, later = sparse.update(baseline, x + 1, *others, mask=corner(), commit=True)
    most = torch.ones_like(corner())
    most[-1, -1] = False
    got = sparse.update(later, x + 2, *others, mask=most)
    wanted = torch.where(most, x + 2, torch.where(corner(), x + 1, x))
    torch.testing.assert_close(got, small_unet()(wanted, *others))


class TwoOutputs(nn.Module):
    """A picture, and an embedding that no edit reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 4)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.embed(time)


def test_results_are_the_callers_own() -> None:
    sparse = sparsify(TwoOutputs().eval(), backend="eager")
    inputs = torch.randn(1, 1, 16, 16), torch.ones(1, 1)
    (_, embedding), baseline = sparse.record(*inputs)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[0, 0] = True
    with torch.no_grad():
        for commit in (False, True):
            result = sparse.update(baseline, *inputs, mask=mask, commit=commit)
            (result[0] if commit else result)[1].zero_()
    assert torch.equal(sparse.update(baseline, *inputs, mask=mask)[1], embedding)


def test_the_report_says_that_the_dense_model_runs() -> None:
    sparse = module()
    sparse.record(*small_inputs())
    sparse.plan(torch.ones_like(corner()))
    assert sparse.report().is_dense
    assert sparse.report().macs_update == sparse.report().macs_dense
    sparse.plan(corner())
    assert not sparse.report().is_dense
