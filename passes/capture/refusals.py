"""What no graph can be captured of, known before anything runs: each with what to do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from sparsify.codegen.errors import CaptureError
from torch import Tensor, nn

_CASTING = (
    "is stored in another dtype than it computes in (enable_layerwise_casting): load the model "
    "again without, as rounded weights cannot be got back"
)
_OFFLOADED = (
    "has its weights moved at each call ({}): call pipe.remove_all_hooks() or "
    "accelerate.hooks.remove_hook_from_module(model, recurse=True), then model.to(device)"
)
_GROUPS = (
    "has its weights moved at each call (enable_group_offload): call diffusers.hooks."
    'HookRegistry.check_if_exists_or_initialize(model).remove_hook("group_offloading"), '
    "then model.to(device)"
)
_CACHED = "keeps values from call to call ({}): call model.disable_cache()"


def refuse_scripted(model: Any) -> None:
    """Raises :class:`CaptureError` for what torch.jit made: its code is not Python's."""
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise CaptureError(
            "the model comes from torch.jit.trace or torch.jit.script, whose code cannot be "
            "captured: pass the nn.Module that it was made from"
        )


def refuse_training(model: nn.Module) -> None:
    """Raises :class:`CaptureError` for a model, or a part that behaves otherwise then, in
    training mode."""
    norms, drops = nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd
    parts = [(n, p) for n, p in model.named_modules() if p.training]
    for name, part in parts:
        if isinstance(part, norms) and part.track_running_stats:
            raise CaptureError(
                f"{name or 'the model'} ({type(part).__name__}) is in training mode: call "
                "model.eval() first. If the model wants the statistics of its own input at test "
                "time (pix2pix), set running_mean = running_var = None of its batch norms then"
            )
    for name, part in parts:
        if isinstance(part, norms | drops) or part is model:
            raise CaptureError(
                f"{name or 'the model'} is in training mode: call model.eval() first"
            )


def refuse_hooks(model: nn.Module) -> None:
    """Raises :class:`CaptureError` for hooks of accelerate and diffusers that move or cast
    weights, or that keep values between calls."""
    for name, part in model.named_modules():
        for reason in _hooked(part):
            raise CaptureError(f"{name or 'the model'} {reason}")


def _hooked(part: nn.Module) -> Iterator[str]:
    """By name: neither library need be installed."""
    hook: Any = getattr(part, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        kind = type(one).__name__
        if kind == "CpuOffload":
            yield _OFFLOADED.format("enable_model_cpu_offload")
        if kind == "AlignDevicesHook" and one.offload:
            yield _OFFLOADED.format("enable_sequential_cpu_offload")
        if kind == "LayerwiseCastingHook":
            yield _CASTING
    registry = getattr(part, "_diffusers_hook", None)
    for name, one in getattr(registry, "hooks", {}).items():
        if name == "layerwise_casting":
            yield _CASTING
        elif name == "group_offloading":
            yield _GROUPS
        elif one._is_stateful:
            yield _CACHED.format(name)


def other_dtype(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Names a floating input whose dtype is not the parameters'."""
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    given = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
    for name, value in given.items():
        if isinstance(value, Tensor) and value.is_floating_point() and {value.dtype} != own:
            dtypes = " and ".join(sorted(map(str, own)))
            return (
                f"{name} is {value.dtype} but the parameters of {type(model).__name__} are "
                f"{dtypes}: convert one or the other with .to(dtype)"
            )
    return None
