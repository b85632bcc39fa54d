"""Tiny pipelines of diffusers, offline and with random weights: a case for each family."""

from __future__ import annotations

from tests.pipelines import flux, qwen, sdxl, stable_diffusion, transformers, video
from tests.pipelines.parts import Case

__all__ = ["CASES", "Case"]

CASES: dict[str, Case] = (
    stable_diffusion.CASES | sdxl.CASES | transformers.CASES | flux.CASES | qwen.CASES | video.CASES
)
