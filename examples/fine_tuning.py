"""What examples and benchmarks of sparse weights share: training by the dense model, and its
error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.utils import parametrize

from sparsify import SparseWeights
from sparsify.weights import Batch, distill, own_samples, relative_error

WARM_UP = 20


def fine_tune(
    weights: SparseWeights,
    teacher: nn.Module,
    run: Callable[[nn.Module], Any],
    steps: int,
    rate: float,
) -> None:
    """Trains on calls of the teacher's own samples, which ``run(teacher)`` makes, and shows how far
    it is. The learning rate is ``rate`` for a third of the steps and then falls to zero."""
    optimizer = torch.optim.AdamW(weights.model.parameters(), 0.0, (0.9, 0.99), weight_decay=0.0)
    columns = (TextColumn("loss {task.fields[loss]:.5f}"), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=steps, loss=float("nan"))
        for step in distill(weights, own_samples(teacher, run), optimizer, steps, teacher=teacher):
            share = min(1.0, step.number / WARM_UP, 1.5 * (1 - step.number / steps))
            optimizer.param_groups[0]["lr"] = rate * share
            progress.update(task, advance=1, loss=step.loss)


@torch.no_grad()
def error(model: nn.Module, calls: Sequence[Batch]) -> float:
    """Of the outputs, squared, relative to the teacher's."""
    with parametrize.cached():  # masks are made once
        return relative_error(model, calls)
