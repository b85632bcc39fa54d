"""The two trained networks whose fidelity with sparse weights is measured."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.reuse_runs import PROMPTS, SEEN, Emoji, Settings
from examples.emoji import net, sparse
from examples.emoji.sample import noise
from examples.terrain import TerrainUNet, generate, hillshade, load_terrain

STEPS, SIGMAS = 10, (80.0, 5.0, 0.3)
"""Of samples that are measured."""
SIDE = 128
"""Of painted samples."""


class Net(Protocol):
    """A network, how it samples, and how its samples look."""

    network: nn.Module
    titles: tuple[str, ...]
    """Of the samples of one seed."""

    def run(self, seed: int) -> Callable[[nn.Module], Any]:
        """What samples with the network that it is given, something else each time."""

    def samples(self, network: nn.Module, seed: int) -> Tensor:
        """float [N, C, H, W] in 0..1, one for each title."""

    def painted(self, samples: Tensor) -> Tensor:
        """float [N, C, H, W] -> float [N, 3, 128, 128], in 0..1"""


class EmojiNet:
    """Emoji of words, by DDIM with guidance."""

    def __init__(self, narrow: bool) -> None:
        self.titles = PROMPTS[:4] if narrow else (*PROMPTS, *SEEN)
        self._emoji = Emoji.of(Settings(narrow=narrow))
        self.network: nn.Module = self._emoji.unet

    def run(self, seed: int) -> Callable[[nn.Module], Any]:
        emoji = self._emoji
        return sparse.sampler(net.Model(emoji.unet, emoji.text_encoder, emoji.tokenizer), seed)

    def samples(self, network: nn.Module, seed: int) -> Tensor:
        latents = noise(len(self.titles), seed)
        return self._emoji.sample(network, self.titles, latents, STEPS)

    def painted(self, samples: Tensor) -> Tensor:
        return nn.functional.interpolate(samples, SIDE)


class TerrainNet:
    """Height maps, hill-shaded, by consistency sampling in five steps."""

    def __init__(self, narrow: bool) -> None:
        self._difficulties = [i / 7 for i in range(4 if narrow else 8)]
        self.titles = tuple(f"terrain, difficulty {own:.1f}" for own in self._difficulties)
        torch.manual_seed(0)
        small = TerrainUNet(mult=(1, 1), blocks=1, attention=(1,))
        network = small.eval() if narrow else load_terrain()
        # Its convolutions take two thirds of the time so; those of emoji, on smaller grids, do not.
        self.network: nn.Module = network.to(memory_format=torch.channels_last)
        self._size = 32 if narrow else SIDE

    def run(self, seed: int) -> Callable[[nn.Module], Any]:
        drawn = random.Random(seed)
        size = self._size

        def run(network: nn.Module) -> Tensor:
            seed, difficulty = drawn.randrange(2**31), drawn.random()
            return generate(network, seed, difficulty=difficulty, size=size)

        return run

    def samples(self, network: nn.Module, seed: int) -> Tensor:
        seeds = count(seed * len(self.titles))
        made = [
            generate(network, next(seeds), SIGMAS, difficulty, self._size)
            for difficulty in self._difficulties
        ]
        return (torch.cat(made) + 1) / 2

    def painted(self, samples: Tensor) -> Tensor:
        shaded = np.stack([hillshade(height) for height in (2 * samples[:, 0] - 1).numpy()])
        pictures = torch.from_numpy(shaded).permute(0, 3, 1, 2) / 255
        return nn.functional.interpolate(pictures, SIDE)


NETS: dict[str, Callable[[bool], Net]] = {"emoji": EmojiNet, "terrain": TerrainNet}
