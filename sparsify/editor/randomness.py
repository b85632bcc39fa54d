"""The state of torch's random numbers: an edited run draws what the recorded one drew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from ..runtime import copy_of


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """Stands for a generator in a call's arguments."""

    device: torch.device
    state: Tensor

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).set_state(self.state)


@dataclass(frozen=True, eq=False)
class Randomness:
    """Where torch's own generators stood when a call began."""

    host: Tensor
    cuda: tuple[Tensor, ...]
    """By device; of none before CUDA was used."""

    @staticmethod
    def now() -> Randomness:
        is_used = torch.cuda.is_available() and torch.cuda.is_initialized()
        cuda = torch.cuda.get_rng_state_all() if is_used else []
        return Randomness(torch.get_rng_state(), tuple(cuda))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, torch draws what it drew from there on; afterwards it goes on as before."""
        with torch.random.fork_rng(range(len(self.cuda))):
            torch.set_rng_state(self.host)
            if self.cuda:
                torch.cuda.set_rng_state_all(list(self.cuda))
            yield


def saved(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with the states of generators, and copies of tensors, to which their
    owner may write."""
    return tree_map(_saved, dict(arguments))  # type: ignore[no-any-return]


def _saved(leaf: Any) -> Any:
    if isinstance(leaf, torch.Generator):
        return SavedGenerator(leaf.device, leaf.get_state())
    return copy_of(leaf)


def restored(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, with generators that draw the same."""
    return tree_map_only(SavedGenerator, SavedGenerator.generator, dict(arguments))  # type: ignore[no-any-return]
