"""What the parts of the reuse benchmark share: their settings, the emoji model, and measures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from sparsify.passes.macs import macs_of
from torch import Tensor, nn
from torch._inductor import config as inductor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from examples.emoji import net
from examples.emoji.sample import denoised, noise
from sparsify import Schedule, SparseModule, sparsify
from sparsify.program import Program
from sparsify.timing import interleaved

SEEN = (
    "flat grinning cat face",
    "glossy banana",
    "flat fish",
    "glossy blue heart",
    "glossy smiling face with open mouth",
    "flat bus",
    "glossy evergreen tree",
    "flat cherries",
)
"""Prompts of the run that schedules are calibrated on."""
PROMPTS = (
    "flat smiling face with sunglasses",
    "glossy panda face",
    "flat red apple",
    "glossy rocket",
    "flat light blue heart",
    "glossy octopus",
    "flat deciduous tree",
    "glossy strawberry",
)
EDITS = (
    ("glossy dog face", "glossy panda face"),
    ("flat red apple", "flat banana"),
    ("glossy rocket", "glossy octopus"),
    ("flat smiling face with open mouth", "flat face with medical mask"),
)
"""Prompts of recorded runs, and of edited ones."""
NETWORKS = ("stable-diffusion-1.5", "dit-xl-2-256", "deepfloyd-if-i-m")
console = Console(log_path=False)
Times = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """``backend`` "eager" compiles nothing; ``narrow`` networks are tiny, and untrained. Schedules
    have so many ``calls`` of ``steps``; ``few`` is for what is timed. Quality is of so many
    ``prompts`` with noise of each of the ``seeds``; so many ``edits`` are made."""

    backend: str = "inductor"
    rounds: int = 5
    steps: int = 50
    calls: tuple[int, ...] = (17, 9, 6)
    few: int = 9
    prompts: int = len(PROMPTS)
    seeds: tuple[int, ...] = (1, 2)
    edits: int = len(EDITS)
    narrow: bool = False
    weights: str = "examples/emoji/weights"
    networks: tuple[str, ...] = NETWORKS

    @property
    def is_compiled(self) -> bool:
        return self.backend == "inductor"


@dataclass(frozen=True)
class Emoji:
    """The model of :mod:`examples.emoji`."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast

    @staticmethod
    def of(settings: Settings) -> Emoji:
        return Emoji.tiny() if settings.narrow else Emoji(*net.load(Path(settings.weights)))

    @staticmethod
    def tiny() -> Emoji:
        """Narrow, with random weights."""
        torch.manual_seed(0)
        config = {
            **net.unet().config,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
        }
        tokenizer = net.tokenizer([*SEEN, *PROMPTS, *(prompt for pair in EDITS for prompt in pair)])
        unet = UNet2DConditionModel.from_config(config)
        return Emoji(unet.eval(), net.text_encoder(tokenizer).eval(), tokenizer)

    def sample(
        self, unet: Any, prompts: Sequence[str], latents: Tensor, steps: int, scheduler: Any = None
    ) -> Tensor:
        """float [N, 3, 64, 64] in 0..1, from noise: DDIM, or another scheduler; guidance is a batch
        of two."""
        model = net.Model(unet, self.text_encoder, self.tokenizer)
        latents = denoised(model, prompts, latents, steps, scheduler)
        pictures = nn.functional.pixel_shuffle(latents, net.PATCH)
        return (pictures.clamp(-1, 1) + 1) / 2

    def calibrated(self, steps: int, **options: Any) -> Schedule:
        """Of a run of other prompts and other noise than what is measured."""
        sparse = sparsify(self.unet, backend="eager")
        return sparse.calibrate(
            lambda: self.sample(sparse, SEEN, noise(len(SEEN), 0), steps), **options
        )

    def by(self, schedule: Schedule, sparse: SparseModule, prompt: str, latents: Tensor) -> Tensor:
        """One picture."""
        with sparse.sampling(schedule):
            return self.sample(sparse, [prompt], latents, schedule.steps)

    def dense(self, settings: Settings) -> nn.Module:
        """The model in a copy, compiled for one picture with its weights frozen."""
        model = deepcopy(self.unet)
        if settings.is_compiled:
            model.compile()
            with inductor.patch(freezing=True):
                self.sample(model, SEEN[:1], noise(1, 0), 1)
        return model


@dataclass(frozen=True)
class Work:
    """MACs of a step: of the model, and of both forms with which a part of it is reused."""

    dense: int
    key: int
    reuse: int

    @staticmethod
    def of(program: Program) -> Work:
        parts = (program.graphs[name] for name in ("dense", "key", "reuse"))
        return Work(*(macs_of(part.graph) for part in parts))

    def share(self, schedule: Schedule) -> float:
        """Of the full run's MACs."""
        return whole(schedule, self.key, self.reuse) / (schedule.steps * self.dense)


OF_OUTPUT = Work(1, 1, 0)
"""Where all of the model is reused: shares of a step."""


def whole(schedule: Schedule, key: float, reuse: float) -> float:
    """What a run takes whose steps take so much."""
    keys = len(schedule.keys)
    return keys * key + (schedule.steps - keys) * reuse


def psnr(got: Tensor, want: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """In dB, of pictures [N, C, H, W] in 0..1, where ``mask`` bool [H, W] is: the mean over
    pictures, and that of their mean error."""
    errors = (got - want).square()
    errors = errors.flatten(2) if mask is None else errors[..., mask]
    each = errors.mean((1, 2)).double().clamp(min=1e-10)
    return {
        "psnr": float(-10 * each.log10().mean()),
        "psnr_of_mean_error": -10 * math.log10(float(each.mean())),
    }


def seconds(variants: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Medians and spread of runs that take turns."""
    times = interleaved(variants, rounds, tell=console.log)
    return {name: spread(spent) for name, spent in times.items()}


def spread(spent: Sequence[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {
        "median_s": statistics.median(spent) / 1e3,
        "min_s": min(spent) / 1e3,
        "max_s": max(spent) / 1e3,
    }
