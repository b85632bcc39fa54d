"""Steps on tokens: text and image of one axis, linear attention, frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import CONTEXT, Inputs, Lambda, Maker, Shape, Step, on_image


def to_tokens(image: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H*W, C]."""
    return image.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, shape: Shape) -> Tensor:
    """[N, H*W, C] -> [N, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, shape.grid)


def rotated(x: Tensor, angles: Tensor, kind: str) -> Tensor:
    """Rotary embedding of [N, heads, L, d] by ``angles`` [L, d/2]."""
    if kind == "complex":
        turn = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(3)
    if kind == "in place":
        turned, (cos, sin) = torch.empty_like(x), (angles.cos(), angles.sin())
        turned[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
        turned[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
        return turned
    if kind == "pairs":
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
        swapped = torch.stack([-imaginary, real], -1).flatten(3)
        cos, sin = angles.cos(), angles.sin()
        return x * cos.repeat_interleave(2, 1) + swapped * sin.repeat_interleave(2, 1)
    return x


@dataclass(frozen=True)
class Joint(Step):
    """Text and image tokens attend to each other (MM-DiT); ``single``: one stream for both."""

    text_first: bool
    single: bool
    rotary: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels, (text, width) = shape.channels, CONTEXT
        length = text + shape.height * shape.width
        parts = [
            make.fill(nn.Linear(width, channels)),
            make.fill(nn.Linear(channels, 12)),
            make.fill(nn.Linear(channels, 12)),
            make.fill(nn.Linear(4, channels)),
        ]
        return Lambda(
            lambda inputs, *own: self._run(inputs, shape, text, *own),
            *parts,
            make.normal(length, 1),
        )

    def _run(
        self,
        inputs: Inputs,
        shape: Shape,
        text: int,
        embed: nn.Module,
        first: nn.Module,
        second: nn.Module,
        leave: nn.Module,
        angles: Tensor,
    ) -> Tensor:
        words, pixels = embed(inputs.context), to_tokens(inputs.x)
        if self.single:
            qkv = first(self._join(words, pixels))
        else:
            qkv = self._join(first(words), second(pixels))
        parts = [t.unflatten(-1, (2, 2)).transpose(1, 2) for t in qkv.chunk(3, -1)]
        q, k = (rotated(t, angles, self.rotary) for t in parts[:2])
        y = F.scaled_dot_product_attention(q, k, parts[2]).transpose(1, 2).flatten(2)
        length = y.shape[1]
        sizes = [text, length - text] if self.text_first else [length - text, text]
        both = leave(y).split(sizes, 1)
        words, pixels = both if self.text_first else both[::-1]
        return inputs.x + to_image(pixels, shape) + words.mean(1)[:, :, None, None]

    def _join(self, words: Tensor, pixels: Tensor) -> Tensor:
        return torch.cat([words, pixels] if self.text_first else [pixels, words], 1)


@dataclass(frozen=True)
class LinearAttention(Step):
    """Products of keys and values are summed over the sites first (Sana)."""

    normalised: bool

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        project = make.fill(nn.Conv2d(shape.channels, 12, 1))
        leave = make.fill(nn.Conv2d(4, shape.channels, 1))

        def attend(x: Tensor, project: nn.Module, leave: nn.Module) -> Tensor:
            q, k, v = (t.flatten(2) for t in project(x).chunk(3, 1))
            q, k = q.relu() + 0.1, k.relu() + 0.1
            if self.normalised:
                v = F.pad(v, (0, 0, 0, 1), value=1.0)
            y = (v @ k.transpose(1, 2)) @ q
            y = y[:, :-1] / y[:, -1:] if self.normalised else y / q.shape[2]
            return x + leave(y.unflatten(2, shape.grid))

        return on_image(attend, project, leave)


@dataclass(frozen=True)
class Frames(Step):
    """Channels taken as frames: each site attends over them, or all tokens of all frames."""

    over: str

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        enter, leave = (
            make.fill(nn.Conv2d(*pair, 1)) for pair in ((shape.channels, 6), (6, shape.channels))
        )
        qkv = make.fill(nn.Linear(2, 6))

        def attend(x: Tensor, enter: nn.Module, qkv: nn.Module, leave: nn.Module) -> Tensor:
            video = enter(x).unflatten(1, (3, 2))  # [N, T, C, H, W]
            if self.over == "norm":
                video = F.group_norm(video.transpose(1, 2), 1).transpose(1, 2)
                return x + leave(video.flatten(1, 2))
            at_end = video.permute(0, 3, 4, 1, 2) if self.over == "time" else None
            at_end = video.permute(0, 1, 3, 4, 2) if at_end is None else at_end
            tokens = at_end.flatten(0, 2) if self.over == "time" else at_end.flatten(1, 3)
            y = F.scaled_dot_product_attention(*qkv(tokens).chunk(3, -1)).reshape(at_end.shape)
            back = (0, 3, 4, 1, 2) if self.over == "time" else (0, 1, 4, 2, 3)
            return x + leave(y.permute(back).flatten(1, 2))

        return on_image(attend, enter, qkv, leave)


JOINT = st.builds(
    Joint, st.booleans(), st.booleans(), st.sampled_from(["none", "pairs", "complex", "in place"])
)
LINEAR_ATTENTION = st.builds(LinearAttention, st.booleans())
FRAMES = st.builds(Frames, st.sampled_from(["time", "tokens", "norm"]))
