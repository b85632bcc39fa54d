"""Objects of another class that share all that a module holds."""

from __future__ import annotations

from typing import Any

from torch import nn

from .codegen.errors import ModelError
from .passes.capture.refusals import refuse_scripted


def view(model: nn.Module, bases: tuple[type[nn.Module], ...], names: dict[str, Any]) -> nn.Module:
    """A module with ``model``'s parameters, buffers, submodules, hooks and attributes, of a
    subclass of ``bases`` that defines ``names`` and goes by the name of the model's class.

    What is written to one is written to both: they have one ``__dict__``.
    """
    kind = type(model)
    about = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    shared: nn.Module = object.__new__(type(kind.__name__, bases, {**about, **names}))
    object.__setattr__(shared, "__dict__", model.__dict__)
    return shared


def require_module(model: Any, method: str) -> None:
    """Raises :class:`ModelError`, with what to pass, for anything but a module, one that is
    compiled or sparsified already, and a ``method`` that it does not have; :class:`CaptureError`
    for what torch.jit made."""
    name = type(model).__name__
    refuse_scripted(model)
    if isinstance(model, str):
        raise ModelError(f"{model!r} is text: load the model first, and pass the module")
    if not isinstance(model, nn.Module):
        parts = getattr(model, "components", None)
        if isinstance(parts, dict):
            denoisers = [part for part in ("transformer", "unet", "prior") if part in parts]
            part = (denoisers or ["unet"])[0]
            raise ModelError(
                f"a {name} is a pipeline of several models: pipe.{part} = sparsify(pipe.{part})"
            )
        raise ModelError(f"a {name} is no torch.nn.Module: pass the module that is called")
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "the model is compiled already: pass the one that torch.compile was given, "
            "sparsify compiles what it makes of it"
        )
    if hasattr(type(model), "_engine"):
        raise ModelError("the model is sparsified already: pass the one that sparsify was given")
    if not callable(getattr(type(model), method, None)):
        raise ModelError(f"method={method!r}: {name} has no such method")
