"""Training of sparse weights with the dense model as the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..codegen.nm.pattern import NM
from .batch import Batch, squared_error
from .progressive import progressive
from .sparse_weights import SparseWeights

TEACHER_SHARE = 0.1
"""Of the teacher's error where there is data too, as SparseDM (arXiv 2404.10445) trains."""


class Step(NamedTuple):
    """What one step of training did."""

    number: int
    """From 1 on."""
    loss: float
    layers: dict[str, NM]
    """The patterns that it was taken with."""


def teacher_of(weights: SparseWeights) -> nn.Module:
    """A dense copy of the model as it is now, which is not trained."""
    copy = deepcopy(weights)
    copy.remove()
    return copy.model.requires_grad_(False)


def distillation_loss(
    student: Callable[..., Any], batch: Batch, teacher: Callable[..., Any] | None
) -> Tensor:
    """``|target - student|² + 0.1 |teacher - student|²``; without a target the teacher's error
    alone.

    For loops of your own: ``student`` may be compiled, or in a DDP wrapper. The ``teacher`` is not
    called where the batch has what it gave, and may be None then.
    """
    output, taught = batch.call(student), batch.taught
    if taught is None and teacher is not None:
        with torch.no_grad():
            taught = batch.call(teacher)
    if batch.target is None:
        return squared_error(output, taught)
    loss = squared_error(output, batch.target)
    return loss if taught is None else loss + TEACHER_SHARE * squared_error(output, taught)


def distill(
    weights: SparseWeights,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    teacher: Callable[..., Any] | None = None,
    student: Callable[..., Any] | None = None,
    schedule: str | Sequence[NM] | None = None,
    clip: float | None = 1.0,
) -> Iterator[Step]:
    """Trains for ``steps``, one each time that the iterator is advanced: stop whenever you like.

    The ``teacher`` is the dense model as it is at the first step, if no other is given; the
    ``student`` what is called instead of ``weights.model`` (compiled, or in a DDP wrapper). With a
    ``schedule``, ``"step7"`` or ``"step31"`` or patterns of your own, each pattern is taken for an
    equal part of the steps. Its ``v`` is that of ``weights``. A switch changes no parameter, so the
    optimizer goes on with its state; copies (EMA) follow by ``copy.apply(step.layers)``. Gradients
    are clipped to the norm ``clip``.

    >>> for step in distill(weights, batches, torch.optim.AdamW(unet.parameters(), 1e-4), 500):
    ...     print(step.number, step.loss)
    """
    stages = () if schedule is None else progressive(schedule)
    teacher = teacher_of(weights) if teacher is None else teacher
    student = weights.model if student is None else student
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    taken: NM | None = None
    for number, batch in enumerate(islice(batches, steps)):
        stage = stages[min(number * len(stages) // steps, len(stages) - 1)] if stages else None
        if stage is not None and stage != taken:
            weights.use(stage.n, stage.m)
            taken = stage
        loss = distillation_loss(student, batch, teacher)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        yield Step(number + 1, loss.item(), weights.layers)
