"""Specifications of inputs, which make a tensor when an example is built, and common sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Spec = Callable[..., "partial[Any]"]


def later(make: Callable[..., Any]) -> Spec:
    """The function that takes the arguments of ``make`` and keeps them until then."""
    return partial(partial, make)


def made(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, with every specification replaced by what it makes."""
    result: dict[str, Any] = tree_map_only(partial, lambda spec: spec(), inputs)
    return result


normal, uniform, integers = later(torch.randn), later(torch.rand), later(torch.randint)
ones, zeros, constant = later(torch.ones), later(torch.zeros), later(torch.full)
tensor, arange = later(torch.tensor), later(torch.arange)


@later
def first(count: int, of: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A mask [1, of] of padded text: the first ``count`` words are valid."""
    return (torch.arange(of)[None] < count).to(dtype)


@later
def places(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The place of each token of a picture: frame, row, column and, of four axes, the word."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).to(dtype)


@later
def word_places(words: int, axes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The place of each token of a text: zeros, and the word on the last of four axes."""
    found = torch.zeros(words, axes, dtype=dtype)
    if axes == 4:
        found[:, 3] = torch.arange(words)
    return found


@later
def diagonal(words: int, step: tuple[float, ...]) -> Tensor:
    """The place of each word of a text on a line."""
    return torch.arange(words)[:, None] * torch.tensor(step)


@later
def shifted(spec: Any, *by: float) -> Any:
    return spec() + torch.tensor(by)


@later
def joined(*specs: Any, dim: int = 0) -> Tensor:
    return torch.cat([spec() for spec in specs], dim)


@later
def batched(spec: Any) -> Any:
    """A batch of one."""
    return spec()[None]


def words(width: int, count: int = 7) -> partial[Any]:
    """Embeddings of a prompt."""
    return normal(1, count, width)


TWO_HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
HEADS, ONE_EACH = (
    TWO_HEADS | {"num_layers": 2},
    TWO_HEADS | {"num_layers": 1, "num_single_layers": 1},
)
LATENT = {"in_channels": 4, "out_channels": 4}
