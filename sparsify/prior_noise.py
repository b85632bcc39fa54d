"""Prior noise: a little of the noise that a run began with, added to its late steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .codegen.errors import ConfigError


class PriorNoise:
    """Keeps details that encoder propagation loses (Faster Diffusion, arXiv:2312.09608).

    ``scale`` times the ``noise`` that a run began with is added to the latents before each step
    whose timestep, of 1000, is less than ``below``. Called by one's own loop, or by a diffusers
    pipeline:

    >>> pipe(prompt, latents=noise, callback_on_step_end=PriorNoise(noise).on_step_end)
    """

    def __init__(self, noise: Tensor, scale: float = 0.003, below: float = 500.0) -> None:
        self._noise, self._scale, self._below = noise.clone(), scale, below

    def __call__(self, latents: Tensor, timestep: float | Tensor) -> Tensor:
        """``latents`` [N, ...] for the step at ``timestep``. Raises :class:`ConfigError` if they
        have another shape than the noise."""
        if latents.shape != self._noise.shape:
            raise ConfigError(
                f"latents {list(latents.shape)} for noise {list(self._noise.shape)}: give the "
                "noise that this run begins with"
            )
        if float(timestep) >= self._below:
            return latents
        return latents + self._scale * self._noise.to(latents)

    def on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        """``callback_on_step_end`` of a diffusers pipeline: before its next step."""
        times = pipe.scheduler.timesteps
        later = [i for i in range(len(times)) if times[i] == timestep]
        if later and later[-1] + 1 < len(times):
            tensors["latents"] = self(tensors["latents"], times[later[-1] + 1])
        return tensors
