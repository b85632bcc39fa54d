"""A model and example inputs -> a functional fx graph of whole ATen operators."""

from __future__ import annotations

import copy
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO, cast

import torch
from sparsify.codegen.errors import CaptureError, SparsifyError
from sparsify.codegen.tracing import alone
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from .composites import decompose, is_functional
from .effects import Snapshot, forked_generators, warm_up
from .refusals import other_dtype, refuse_hooks, refuse_scripted, refuse_training
from .strides import without_strides

_FLOW = re.compile("data.dependent|depends on tensor values|Boolean|control flow")
"""What errors say about control flow that depends on values."""


@dataclass(frozen=True)
class Captured:
    """The graph takes the flattened inputs and returns the flattened outputs."""

    module: GraphModule
    output_spec: TreeSpec
    reset: frozenset[int]
    """The identities of tensors attached to the model, and that each call sets again."""


def capture(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    """Exports ``model`` for inputs of exactly these shapes, dtypes and constants.

    Raises :class:`CaptureError` for a model in training mode, one that keeps state or is hooked
    into, or one whose Python code depends on tensor values; it names the line of the model.
    Generators, buffers and attributes are afterwards as they were, but for tables that the
    model's first call makes. One thread captures at a time.
    """
    refuse_scripted(model)
    refuse_training(model)
    refuse_hooks(model)
    with alone(), torch.no_grad(), forked_generators((args, kwargs)):
        try:
            # Models keep tables (rotary embeddings) from their first call on: made during export
            # they would be symbols, and the user's model broken.
            reset = warm_up(model, args, kwargs)
        except SparsifyError:
            raise
        except Exception as error:
            dtype = other_dtype(model, args, kwargs) if "type" in str(error) else None
            raise CaptureError(dtype or _explain(model, error)) from error
        try:
            program = _exported(model, args, kwargs)
        except Exception as error:
            raise CaptureError(_explain(model, error)) from error
        for node in program.graph.nodes:
            if any(map(_depends_on_values, tree_leaves(node.meta.get("val")))):
                why = ValueError(f"{node.name} depends on tensor values")
                raise CaptureError(_explain(model, why))
        module = program.module(check_guards=False)
        assert isinstance(module, GraphModule)
        if is_functional(module.graph):
            decompose(module)
    without_strides(module.graph)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    assert program.call_spec.out_spec is not None
    expected = tree_flatten((args, kwargs))[1]
    if program.call_spec.in_spec != expected:
        raise CaptureError("the model's inputs were re-ordered by export: pass plain containers")
    return Captured(module, program.call_spec.out_spec, reset)


def _exported(model: torch.nn.Module, args: Any, kwargs: Any) -> torch.export.ExportedProgram:
    """Export swaps the parameters of what it traces, which other threads may be calling meanwhile:
    it gets modules of its own, around the same tensors."""
    tensors = Snapshot(model).tensors
    try:
        own = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception:  # anything can be attached to a model
        return _trace(model, args, kwargs)
    try:
        program = _trace(own, args, kwargs)
    except Exception as error:
        if _FLOW.search(str(error)):
            raise
        return _trace(model, args, kwargs)
    # A function that was put on a model may go on calling the modules that it was made for.
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    constants = [c for c in program.constants.values() if isinstance(c, torch.Tensor)]
    is_whole = not any(constant.data_ptr() in memory for constant in constants)
    return program if is_whole else _trace(model, args, kwargs)


def _trace(model: torch.nn.Module, args: Any, kwargs: Any) -> torch.export.ExportedProgram:
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from copying specs and on attributes
        program: torch.export.ExportedProgram = torch.export.export(
            model, args, kwargs, strict=False
        )
        # To replace writes and to cast as autocast does, torch traces the whole graph again.
        is_whole = is_functional(program.graph) and not _autocasts(args, kwargs)
        return program if is_whole else program.run_decompositions({})


def _autocasts(args: Any, kwargs: Any) -> bool:
    tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    kinds = {"cpu", *(tensor.device.type for tensor in tensors)}
    return any(torch.is_autocast_enabled(k) for k in kinds if torch.amp.is_autocast_available(k))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's logs, and the graph that it prints when an export fails: our error says
    what is wrong. Other threads are heard."""
    own, real = threading.get_ident(), sys.stderr

    class Others:
        """Standard error, for other threads."""

        def write(self, text: str) -> int:
            return len(text) if threading.get_ident() == own else real.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    def is_heard(record: logging.LogRecord) -> bool:
        return record.thread != own

    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    handlers = {h for one in loggers if one.name.split(".")[0] == "torch" for h in one.handlers}
    for handler in handlers:
        handler.addFilter(is_heard)
    sys.stderr = cast(TextIO, Others())
    try:
        yield
    finally:
        sys.stderr = real
        for handler in handlers:
            handler.removeFilter(is_heard)


def _depends_on_values(value: Any) -> bool:
    """A number, or the size of a tensor, that is only known once the model runs."""
    if isinstance(value, torch.Tensor):
        return not all(isinstance(size, int) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


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
    advice = ""
    if _FLOW.search(str(error)):
        advice = ". Make control flow independent of tensor values, or sparsify the part that is"
    return f"{type(model).__name__} cannot be captured{where}: {reason.rstrip('.')}{advice}"
