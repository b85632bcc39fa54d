"""Sparse weights in sessions: space, time and weights at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sparsify import Schedule, SparseModule, SparseWeights, sparsify
from sparsify.run_report import RunReport

STEPS, SIZE = 6, 16
MASK = torch.zeros(SIZE, SIZE, dtype=torch.bool)
MASK[3:8, 4:9] = True


def model() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=32,
    ).eval()


def edited(sparse: SparseModule, schedule: Schedule | None) -> list[Tensor]:
    """The results of a run, of an edit of it, and of an edit of that one."""
    torch.manual_seed(1)
    x, words = torch.randn(2, 4, SIZE, SIZE), torch.randn(2, 7, 32)
    painted = torch.where(MASK, x + 1, x)

    def sampled(x: Tensor) -> Tensor:
        for t in range(STEPS, 0, -1):
            x = x - sparse(x, torch.tensor(100 * t), words).sample / STEPS
        return x

    with sparse.recording(schedule) as session:
        first = sampled(x)
    with session.editing(MASK, schedule, keep=True) as editing:
        second = sampled(painted)
    with editing.session.editing(MASK.flip(0), schedule):
        return [first, second, sampled(torch.where(MASK.flip(0), painted - 1, painted))]


def run_report(sparse: SparseModule, schedule: Schedule) -> RunReport:
    """Of an edit of a run."""
    torch.manual_seed(1)
    x, words = torch.randn(2, 4, SIZE, SIZE), torch.randn(2, 7, 32)

    def sampled() -> None:
        for t in range(STEPS, 0, -1):
            sparse(x, torch.tensor(100 * t), words)

    with sparse.recording(schedule) as session:
        sampled()
    with session.editing(MASK, schedule) as editing:
        sampled()
    return editing.report()


@torch.no_grad()
@pytest.mark.parametrize("part", [None, "output", "encoder", "deep"])
def test_all_three_equal_the_masked_model(part: Any) -> None:
    options: dict[str, Any] = {"backend": "eager", "dense_share": 0.0, "dilate": 0}
    schedule = part and Schedule.every(3, STEPS, order=1, reuse=part)
    weights = SparseWeights(model(), 2, 4, v=16)
    got = edited(sparsify(weights.model, **options), schedule or None)
    weights.remove(bake=True)
    want = edited(sparsify(weights.model, **options), schedule or None)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not torch.equal(got[1], got[2])


@torch.no_grad()
@pytest.mark.parametrize("part", ["output", "deep"])
def test_the_report_of_a_run_has_the_shares_of_all_three(part: Any) -> None:
    schedule = Schedule.every(3, STEPS, reuse=part)
    shares = []
    for n, m in ((4, 4), (2, 4)):
        own = SparseWeights(model(), 2, 4, v=16)
        own.use(n, m)
        report = run_report(sparsify(own.model, backend="eager", dense_share=0.0), schedule)
        whole = report.macs_dense
        shares.append((whole, report.macs_space, report.macs_time))
        left = report.macs_weights / whole
    assert shares[0] == shares[1]  # each of what it alone leaves
    assert 0.5 < left < 0.7 and report.macs_now < min(*shares[1], report.macs_weights)
    assert sum(node.macs_now for node in report.nodes()) == report.macs_now
