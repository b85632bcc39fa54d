"""A little pipeline of which it is known where a prompt changes what: no diffusion is needed to see
what finds masks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

SIDE, CHANNELS, LENGTH = 16, 8, 8
WORDS = ("<", ">", "a", "picture", "with", "sun", "hat", "bag")
HAT, BAG, TURN, GROW = 0, 1, 2, 3
"""What the channels of a word say: who attends to it, and how it changes the picture."""
ANYONE, LAST = 4, 7


def box(top: int, left: int, high: int = 4, wide: int = 4) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[top : top + high, left : left + wide] = True
    return mask


HATS, BAGS = box(1, 2), box(1, 10)
TURNED, GROWN = box(10, 2), box(10, 10)
"""Where sites attend to hats and bags, and where these turn and enlarge what a site holds."""


def vocabulary() -> Tensor:
    """[words, C]."""
    rows = torch.zeros(len(WORDS), CHANNELS)
    rows[:, LAST] = torch.linspace(-1, 1, len(WORDS))
    rows[WORDS.index("picture"), ANYONE] = 4
    for word, who in (("hat", HAT), ("bag", BAG)):
        rows[WORDS.index(word), [who, TURN, GROW]] = torch.tensor([8.0, 1.0, 1.0])
    return rows


class Canvas(nn.Module):
    """A denoiser whose clean picture is the same at all steps."""

    def __init__(self, has_words: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.has_words = has_words
        self.query = nn.Linear(4, CHANNELS, bias=False)
        self.register_buffer("base", torch.randn(4, SIDE, SIDE, generator=generator).sign())
        who = torch.zeros(SIDE * SIDE, CHANNELS)
        who[:, ANYONE] = 2.0
        for mask, channel in ((HATS, HAT), (BAGS, BAG)):
            who[mask.flatten(), channel] = 4.0
        self.register_buffer("who", who)
        self.register_buffer("turned", TURNED.float())
        self.register_buffer("grown", GROWN.float())

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        words = encoder_hidden_states
        told = words.sum(1)[..., None, None, None]
        turned = self.base.roll(1, 0) * told[:, TURN] * self.turned
        picture = self.base + 2 * turned + 2 * self.base * told[:, GROW] * self.grown
        if self.has_words:
            picture = picture + 1e-4 * self._attended(sample, words)
        y: Tensor = (sample - picture) / (timestep.reshape(-1, 1, 1, 1) / 1000)
        return y

    def _attended(self, sample: Tensor, words: Tensor) -> Tensor:
        tokens = sample.flatten(2).transpose(1, 2)
        query = 0.01 * self.query(tokens) + self.who
        heads = [x.unflatten(-1, (1, CHANNELS)).transpose(1, 2) for x in (query, words, words)]
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)[..., :4]
        return y.transpose(1, 2).reshape(sample.shape)


class Tokenizer:
    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[WORDS.index(word) for word in ("<", *text.split(), ">")])


class Studio:
    """``guidance``: in one batch, in two calls, or none. With ``leak`` the text encoder is causal:
    a word changes so much of all rows behind it."""

    def __init__(
        self,
        guidance: str = "batch",
        leak: float = 0.0,
        has_words: bool = True,
        scheduler: Any = None,
        tokenizer: Any = None,
    ) -> None:
        torch.manual_seed(0)
        self.transformer: Any = Canvas(has_words).eval()
        self.scheduler = scheduler or FlowMatchEulerDiscreteScheduler()
        self.tokenizer = tokenizer
        self.guidance, self.leak = guidance, leak

    @property
    def components(self) -> dict[str, Any]:
        return {
            "transformer": self.transformer,
            "scheduler": self.scheduler,
            "tokenizer": self.tokenizer,
        }

    def encoded(self, text: str) -> Tensor:
        """[L, C]."""
        tokens = Tokenizer()(text).input_ids
        rows = vocabulary()[tokens + [1] * (LENGTH - len(tokens))]
        others = torch.zeros_like(rows)
        others[1:, [HAT, BAG]] = self.leak * rows[:-1, [BAG, HAT]].cumsum(0)
        return rows + others

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
    ) -> Any:
        words = prompt_embeds
        if words is None:
            texts = [prompt] if isinstance(prompt, str) else prompt
            assert texts is not None
            words = torch.stack([self.encoded(text) for text in texts])
        words = words.repeat_interleave(images_per_prompt, 0)
        latents = torch.randn(len(words), 4, SIDE, SIDE, generator=generator)
        self.scheduler.set_timesteps(5)
        for time in self.scheduler.timesteps:
            y = self._guided(latents, time, words)
            (latents,) = self.scheduler.step(y, time, latents, return_dict=False)
        return SimpleNamespace(images=latents)

    def _guided(self, latents: Tensor, time: Tensor, words: Tensor) -> Tensor:
        empty = vocabulary()[:1].expand_as(words)
        if self.guidance == "batch":
            pair = torch.cat([latents] * 2), time, torch.cat([empty, words])
            without, given = self.transformer(*pair).chunk(2)
        else:
            calls = (empty, words) if self.guidance == "calls" else (words,)
            made = [self.transformer(latents, time, own) for own in calls]
            without, given = made[0], made[-1]
        y: Tensor = without + 1.5 * (given - without)
        return y
