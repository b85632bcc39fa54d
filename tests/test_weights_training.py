"""Training of sparse weights: distillation, schedules, and the search for patterns."""

from __future__ import annotations

from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify.codegen.nm import nm_mask
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from sparsify import ConfigError, SparseWeights
from sparsify.weights import (
    NM,
    PROGRESSIVE,
    Batch,
    distill,
    distillation_loss,
    own_samples,
    teacher_of,
)

from .small import small_inputs, small_unet


class Net(nn.Module):
    """Latents [N, 8, 6, 6] and a time -> the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Conv2d(8, 32, 1)
        self.wide, self.narrow = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 1)
        self.leave = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.enter(x) + t
        return self.leave(y + self.narrow(self.wide(y).relu()))


def run(model: nn.Module) -> Tensor:
    """A sampler that writes to its latents."""
    x = torch.randn(4, 8, 6, 6)
    for step in range(5):
        x.sub_(model(x, torch.tensor(step / 5)), alpha=0.2)
    return x


def adam(weights: SparseWeights, rate: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights.model.parameters(), rate)


def wrong(model: nn.Module, teacher: nn.Module) -> float:
    torch.manual_seed(9)
    x, t = torch.randn(16, 8, 6, 6), torch.tensor(0.5)
    with torch.no_grad():
        return float(mse_loss(model(x, t), teacher(x, t)))


def test_distillation_without_data() -> None:
    weights = SparseWeights(Net(), 1, 4)
    teacher = teacher_of(weights)
    before = wrong(weights.model, teacher)
    batches = own_samples(teacher, run)
    steps = list(distill(weights, batches, adam(weights), 100, teacher=teacher))
    assert [step.number for step in steps] == list(range(1, 101))
    assert wrong(weights.model, teacher) < 0.5 * before
    assert steps[-1].layers == weights.layers == dict.fromkeys(["wide", "narrow"], NM(1, 4))
    weight: Any = weights.model.get_submodule("wide").weight
    assert (weight != 0).float().mean() == 0.25


def test_the_teacher_is_the_dense_model_at_first() -> None:
    plain, weights = Net(), SparseWeights(Net(), 2, 4)
    x = torch.randn(2, 8, 6, 6), torch.tensor(0.1)
    training = distill(weights, [Batch(x)] * 9, adam(weights), 9)
    loss = next(training).loss
    weights.model.load_state_dict(SparseWeights(Net(), 2, 4).model.state_dict())
    assert loss == pytest.approx(mse_loss(weights.model(*x), plain(*x)).item())
    training.close()  # stops where it is


def test_the_loss() -> None:
    student, teacher = Net(), Net()
    nn.init.normal_(teacher.leave.weight)
    args, target = (torch.randn(2, 8, 6, 6), torch.tensor(0.1)), torch.randn(2, 8, 6, 6)
    ours, theirs = student(*args), teacher(*args)
    both = mse_loss(ours, target) + 0.1 * mse_loss(ours, theirs)
    loss = distillation_loss(student, Batch(args, target=target), teacher)
    torch.testing.assert_close(loss, both)
    known = Batch(args, target=target, taught=theirs.detach())
    assert torch.equal(distillation_loss(student, known, None), loss)
    alone = distillation_loss(student, Batch(args, target=target), None)
    torch.testing.assert_close(alone, mse_loss(ours, target))
    free = distillation_loss(student, Batch((), {"x": args[0], "t": args[1]}), teacher)
    torch.testing.assert_close(free, mse_loss(ours, theirs))
    with pytest.raises(ConfigError, match=r"shapes \[\(2, 8, 6, 6\)\], what they should be \[\]"):
        distillation_loss(student, Batch(args), None)
    with pytest.raises(ConfigError, match="shapes"):
        distillation_loss(student, Batch(args, target=target[:1]), None)


def test_own_samples_are_what_the_teacher_saw() -> None:
    torch.manual_seed(0)
    teacher = Net()
    batches = list(islice(own_samples(teacher, run, passes=2), 15))
    for batch in batches:
        assert torch.equal(batch.call(teacher), batch.taught)
    times = [float(batch.args[1]) for batch in batches]
    first, second, other = times[:5], times[5:10], times[10:]
    assert sorted(first) == sorted(second) == sorted(other)
    assert {id(b) for b in batches[:5]} == {id(b) for b in batches[5:10]}
    assert not {id(b) for b in batches[:5]} & {id(b) for b in batches[10:]}
    assert not teacher._forward_hooks
    with pytest.raises(ConfigError, match="did not call the teacher"):
        next(own_samples(teacher, lambda model: None))


@pytest.mark.parametrize("name", list(PROGRESSIVE))
def test_schedules_switch_after_equal_parts(name: str) -> None:
    weights = SparseWeights(Net(), 2, 4)
    teacher = teacher_of(weights)
    optimizer, batches = adam(weights), own_samples(teacher, run)
    held = [id(p) for p in weights.model.parameters()]
    average = deepcopy(weights)
    seen = []
    for step in distill(weights, batches, optimizer, 10, teacher=teacher, schedule=name):
        seen.append(step.layers["wide"])
        average.apply(step.layers)
        wide: Any = weights.model.get_submodule("wide")
        dense = wide.parametrizations.weight.original
        # The step that follows a switch reads the new mask, of the weights that were trained.
        assert torch.equal(wide.weight != 0, nm_mask(dense, *step.layers["wide"]) & (dense != 0))
        assert optimizer.state[dense]["step"] == step.number
    assert seen == [pattern for pattern in PROGRESSIVE[name] for _ in range(2)]
    assert [id(p) for p in weights.model.parameters()] == held
    assert average.layers == weights.layers


def test_published_schedules() -> None:
    shown = {name: " ".join(map(str, stages)) for name, stages in PROGRESSIVE.items()}
    assert shown == {"step7": "7:8 6:8 5:8 4:8 2:4", "step31": "31:32 15:16 7:8 3:4 2:4"}
    weights = SparseWeights(Net(), 2, 4)
    with pytest.raises(ConfigError, match="schedule='step8': step7, step31"):
        next(distill(weights, [], adam(weights), 1, schedule="step8"))


def test_mixed_precision_and_a_compiled_student() -> None:
    weights = SparseWeights(Net(), 2, 4)
    student = torch.compile(weights.model, backend="aot_eager")
    teacher = teacher_of(weights)
    before, batches = wrong(weights.model, teacher), own_samples(teacher, run)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in distill(weights, batches, adam(weights), 60, teacher=teacher, student=student):
            pass
    assert wrong(weights.model, teacher) < before


def test_distributed(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        weights = SparseWeights(Net(), 2, 4)
        teacher = teacher_of(weights)
        student = DistributedDataParallel(weights.model)
        batches, before = own_samples(teacher, run), wrong(weights.model, teacher)
        for _ in distill(weights, batches, adam(weights), 60, teacher=teacher, student=student):
            pass
        assert wrong(weights.model, teacher) < before
    finally:
        torch.distributed.destroy_process_group()


def test_search_meets_its_budget() -> None:
    weights = SparseWeights(small_unet(), 2, 4)
    inputs, dense = [Batch(small_inputs())], small_unet()
    heard: list[tuple[int, int]] = []
    found = weights.search(0.7, inputs, progress=lambda *done: heard.append(done))
    assert found.layers == weights.layers and 0.5 < found.share <= 0.7
    assert heard == [(i, len(heard)) for i in range(1, len(heard) + 1)]
    output, wanted = weights.model(*small_inputs()), dense(*small_inputs())
    error = (output - wanted).square().sum() / wanted.square().sum()
    assert found.error == pytest.approx(error.item(), rel=1e-4)
    wider = weights.search(0.85, inputs)
    assert wider.error < found.error and wider.share > found.share
    shared = SparseWeights(small_unet(), 2, 4, v=16).search(0.7, inputs)
    assert {pattern.v for pattern in shared.layers.values()} == {16}


def test_search_takes_what_costs_nothing_first() -> None:
    model = Net()
    with torch.no_grad():  # 2:4 of it is the same
        model.wide.weight.mul_(nm_mask(model.wide.weight, 2, 4))
    weights = SparseWeights(model, 2, 4)
    inputs = [Batch((torch.randn(2, 8, 6, 6), torch.tensor(0.1)))]
    found = weights.search(0.6, inputs, choices=[NM(2, 4)])
    assert found.layers == {"wide": NM(2, 4)} and found.error == 0.0
    sites = {"enter": 8 * 32, "wide": 9 * 32 * 64, "narrow": 64 * 32, "leave": 32 * 8}
    assert found.share == pytest.approx(1 - sites["wide"] / 2 / sum(sites.values()))


def test_search_refuses_what_it_cannot_meet() -> None:
    weights = SparseWeights(Net(), 2, 4)
    inputs = [Batch((torch.randn(2, 8, 6, 6), torch.tensor(0.1)))]
    with pytest.raises(ConfigError, match=r"budget=0\.1: 0\.\d+ of the MACs are left"):
        weights.search(0.1, inputs)
    assert set(weights.layers.values()) == {NM(2, 4)}
    with pytest.raises(ConfigError, match="inputs is empty"):
        weights.search(0.6, [])
