"""Python numbers among the inputs: tensors of the graph, where the model takes them so."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .codegen.errors import CaptureError
from .passes.capture import Captured, capture
from .passes.capture.effects import agree, forked_generators
from .signature import Call


def capture_call(model: nn.Module, call: Call, may_be_tensors: bool) -> tuple[Captured, Call]:
    """The graph, and ``call`` as the graph takes it.

    Numbers that only feed arithmetic become tensors, so that one graph serves all timesteps. Where
    the model does not take them so, or gives something else then, they stay constants.
    """
    if may_be_tensors and call.with_tensors is not call:
        captured = _with_tensors(model, call)
        if captured is not None:
            return captured, call.with_tensors
    return capture(model, call.args, call.kwargs), call


def _with_tensors(model: nn.Module, call: Call) -> Captured | None:
    tensors = call.with_tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the attempt is ours
        try:
            captured = capture(model, tensors.args, tensors.kwargs)
        except CaptureError:
            return None
    # A model may write to its inputs.
    args, kwargs = tree_map_only(Tensor, torch.clone, (call.args, call.kwargs))
    with torch.no_grad():
        with forked_generators(call.leaves):
            wanted = tree_leaves(model(*args, **kwargs))
        with forked_generators(call.leaves):
            got = captured.module.forward(*tensors.leaves)
    return captured if agree(list(got), wanted) else None
