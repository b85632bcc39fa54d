"""The clean latents that the output of a model predicts, by what a scheduler says of its steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..codegen.errors import ConfigError

_ARGUMENTS = {
    "scale_noise": ["sample", "timestep", "noise"],
    "add_noise": ["original_samples", "noise", "timesteps"],
}
"""Of methods that mix a picture with noise as the latents of a step are."""

_BETWEEN = ("sigmas_interpol", "mid_point_sigma")
"""What schedulers have that also call the model between two steps, at noises that no such method
knows."""


def _of_velocity(x: Tensor, v: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Of a noise of any strength, as if signal and noise were of length 1 together."""
    length = (signal.square() + noise.square()).sqrt()
    return (signal * x / length - noise * v) / length


_PREDICTED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, v, signal, noise: (x - noise * v) / signal,
    "sample": lambda x, v, signal, noise: v,
    "v_prediction": _of_velocity,
    "flow_prediction": lambda x, v, signal, noise: (x - noise * v) / (signal + noise),
}
"""By the kind of prediction: the picture of latents ``signal * picture + noise * randn``."""


def shares(scheduler: Any, time: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the latents of the step at ``time`` [1]: float [1] each, of the picture and of noise."""
    one, none = torch.ones(1, device=device), torch.zeros(1, device=device)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(one, time, none), scheduler.scale_noise(none, time, one)
    return scheduler.add_noise(one, none, time), scheduler.add_noise(none, one, time)


def clean_latents(scheduler: Any, time: Any, latents: Tensor, output: Tensor) -> Tensor:
    """float, as ``latents``: what they are without noise, by the ``output`` of the model for them.
    The scheduler is about to make the step at ``time``."""
    x, v = latents.float(), output.float()
    v = v[:, : x.shape[1]]  # some predict their variance, too
    signal, noise = shares(scheduler, torch.as_tensor(time).reshape(1), x.device)
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(x, v, noise)  # type: ignore[no-any-return]
    return _PREDICTED[_prediction(scheduler)](x, v, signal, noise)


def require_clean(scheduler: Any) -> None:
    """Raises :class:`ConfigError` for a scheduler that does not tell."""
    mix = next((name for name in _ARGUMENTS if hasattr(scheduler, name)), "")
    takes = list(inspect.signature(getattr(scheduler, mix)).parameters) if mix else []
    is_known = _prediction(scheduler) in _PREDICTED and takes == _ARGUMENTS.get(mix)
    if not is_known or any(hasattr(scheduler, name) for name in _BETWEEN):
        raise ConfigError(
            f"find='reference': a {type(scheduler).__name__} does not tell the picture that a step "
            "predicts: take find='latents', or find='attention'"
        )


def _prediction(scheduler: Any) -> str:
    default = "flow_prediction" if hasattr(scheduler, "scale_noise") else ""
    return str(scheduler.config.get("prediction_type", default))
