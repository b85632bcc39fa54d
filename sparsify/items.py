"""Batches whose items have masks of their own: every item is updated as a batch of one.

So an item costs what its own mask touches, and nothing is padded to the largest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from .baseline import Baseline
from .codegen.errors import MaskError
from .signature import Call, bind


def recorded_call(model: nn.Module, baseline: Baseline) -> Call:
    """The call that ``baseline`` was recorded from."""
    args, kwargs = tree_unflatten(baseline.inputs, baseline.program.signature.spec)
    return bind(model, args, kwargs)


def committed(baseline: Baseline, call: Call, output: Any, items: Sequence[Baseline]) -> Baseline:
    """The baseline of a batch of which only the items are known."""
    outputs, inputs = tree_map_only(Tensor, torch.clone, (tuple(tree_leaves(output)), call.leaves))
    return replace(
        baseline,
        values=None,
        conditions=(),
        outputs=outputs,
        inputs=inputs,
        origins=(None,) * len(inputs),
        items=list(items),
        restricted_to=None,
    )


def split(model: nn.Module, call: Call, batch: int) -> list[Call]:
    """One call an item. Tensors with as many entries first as the batch are cut, others shared."""

    def item(index: int) -> Call:
        def cut(leaf: Tensor) -> Tensor:
            return leaf[index : index + 1] if leaf.dim() and leaf.shape[0] == batch else leaf

        args, kwargs = tree_map_only(Tensor, cut, (call.args, call.kwargs))
        return replace(bind(model, args, kwargs), what=call.what)

    return [item(index) for index in range(batch)]


def join(outputs: Sequence[Any]) -> Any:
    """The outputs of all items as those of the batch."""
    leaves, specs = zip(*map(tree_flatten, outputs), strict=True)
    joined = [
        torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]
        for parts in zip(*leaves, strict=True)
    ]
    return tree_unflatten(joined, specs[0])


def require_independent(baseline: Baseline, outputs: Sequence[Any]) -> None:
    """Raises :class:`MaskError` unless the items alone give what they gave together."""
    leaves = [tree_flatten(output)[0] for output in outputs]
    for number, (whole, *parts) in enumerate(zip(baseline.outputs, *leaves, strict=True)):
        if isinstance(whole, Tensor) and not _agree(whole, parts):
            raise MaskError(
                f"output {number} of an item alone is not its part of the batch, so the items "
                "cannot have masks of their own: give one mask [H, W] for all"
            )


def _agree(whole: Tensor, parts: Sequence[Tensor]) -> bool:
    if not whole.dim() or any(part.shape != whole[:1].shape for part in parts):
        return False
    joined = torch.cat(list(parts))
    if joined.shape != whole.shape or not whole.is_floating_point():
        return torch.equal(joined, whole)
    # Other batch sizes round otherwise: half of the digits have to agree.
    allowed = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()
    return bool(((joined - whole).abs() <= allowed).all())
