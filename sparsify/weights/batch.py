"""One call of a model in training, and what its output should be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..codegen.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """Arguments of a call; with data also the ``target``, of the output's structure and shape."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None
    taught: Any = None
    """The teacher's output, if it is known already."""

    def call(self, model: Callable[..., Any]) -> Any:
        return model(*self.args, **self.kwargs)


def own_samples(
    teacher: nn.Module, run: Callable[[nn.Module], Any], *, passes: int = 4, seed: int = 0
) -> Iterator[Batch]:
    """Without end: calls of ``teacher`` on the way to its own samples, with what it gave.

    ``run(teacher)`` samples once, with any sampler, other noise and other conditions each time. Its
    calls come ``passes`` times each, in an order drawn from ``seed``; then it is run again. No data
    is needed.
    """
    drawn = random.Random(seed)
    while True:
        calls = _calls(teacher, run)
        for _ in range(passes):
            drawn.shuffle(calls)
            yield from calls


@torch.no_grad()
def _calls(teacher: nn.Module, run: Callable[[nn.Module], Any]) -> list[Batch]:
    found: list[Batch] = []

    def keep(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # Samplers may write to their latents in place.
        args, kwargs, output = tree_map_only(Tensor, torch.clone, (args, kwargs, output))
        found.append(Batch(args, kwargs, taught=output))

    hook = teacher.register_forward_hook(keep, with_kwargs=True)
    try:
        run(teacher)
    finally:
        hook.remove()
    if not found:
        raise ConfigError(
            "run(teacher) did not call the teacher: sample with the model it is given"
        )
    return found


def squared_error(output: Any, wanted: Any) -> Tensor:
    """The mean of squares over an output's numbers, of all its tensors, in float32 at least."""
    ours, theirs = _numbers(output), _numbers(wanted)
    if [x.shape for x in ours] != [x.shape for x in theirs] or not ours:
        shapes = [tuple(x.shape) for x in ours], [tuple(x.shape) for x in theirs]
        raise ConfigError(f"outputs have the shapes {shapes[0]}, what they should be {shapes[1]}")
    squares = [(x - y).square().sum() for x, y in zip(ours, theirs, strict=True)]
    return torch.stack(squares).sum() / sum(x.numel() for x in ours)


def relative_error(model: Callable[..., Any], batches: Sequence[Batch]) -> float:
    """Of the outputs on ``batches``, squared, relative to what the teacher gave there."""
    taught = [batch.taught for batch in batches]
    errors = [squared_error(b.call(model), y) for b, y in zip(batches, taught, strict=True)]
    sizes = [squared_error(tree_map_only(Tensor, torch.zeros_like, y), y) for y in taught]
    return float(torch.stack(errors).sum() / torch.stack(sizes).sum())


def _numbers(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    floats = [leaf for leaf in leaves if leaf.is_floating_point()]
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in floats]
