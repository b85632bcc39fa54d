"""A model and example inputs -> a functional fx graph of whole ATen operators."""

from __future__ import annotations

import re
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from sparsify.codegen.errors import CaptureError
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only


@dataclass(frozen=True)
class Captured:
    """The graph takes the flattened inputs and returns the flattened outputs."""

    module: GraphModule
    output_spec: TreeSpec


def capture(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    """Exports ``model`` for inputs of exactly these shapes, dtypes and constants.

    Raises :class:`CaptureError` for a model in training mode, or one whose Python code depends
    on tensor values; it names the line of the model.
    """
    training = [name or "the model" for name, part in model.named_modules() if _trains(part)]
    if model.training or training:
        name = "the model" if model.training else training[0]
        raise CaptureError(f"{name} is in training mode: call model.eval() first")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Models keep tables (rotary embeddings) from their first call on: made during export
            # they would be symbols, and the user's model broken.
            # A model may write to its inputs: it gets copies.
            first = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
            model(*first[0], **first[1])
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying specs
            program = torch.export.export(model, args, kwargs, strict=False)
            program = program.run_decompositions({})
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error
    for node in program.graph.nodes:
        if any(map(_depends_on_values, tree_leaves(node.meta.get("val")))):
            raise CaptureError(_explain(model, ValueError(f"{node.name} depends on tensor values")))
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    assert program.call_spec.out_spec is not None
    expected = tree_flatten((args, kwargs))[1]
    if program.call_spec.in_spec != expected:
        raise CaptureError("the model's inputs were re-ordered by export: pass plain containers")
    return Captured(module, program.call_spec.out_spec)


def _depends_on_values(value: Any) -> bool:
    """A number, or the size of a tensor, that is only known once the model runs."""
    if isinstance(value, torch.Tensor):
        return not all(isinstance(size, int) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def _trains(part: torch.nn.Module) -> bool:
    """In training mode, and of a kind that behaves otherwise there."""
    kinds = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._NormBase)
    return part.training and isinstance(part, kinds)


def _explain(model: torch.nn.Module, error: Exception) -> str:
    """The reason in one line, and the innermost line of the user's own model."""
    own = type(model).__module__.split(".")[0]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{f.filename}:{f.lineno}: {f.line}" for f in frames if f.name == "forward"]
    user = re.findall(r'File "([^"]+)", line (\d+), in forward\s*\n?\s*(.*)', str(error))
    lines += [f"{name}:{number}: {text.strip()}" for name, number, text in user]
    ours = [line for line in lines if f"/{own}/" in line or f"/{own}.py" in line] or lines
    where = f" at {ours[-1]}" if ours else ""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"{type(model).__name__} cannot be captured{where}: {reason}. "
        "Make control flow independent of tensor values, or sparsify the part that is"
    )
