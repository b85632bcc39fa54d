"""Which words of a prompt changed, told from what a text encoder made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .found_masks import above_otsu, scaled


@dataclass(frozen=True)
class Words:
    """Places of the tokens that one of two prompts does not share with the other."""

    recorded: frozenset[int]
    new: frozenset[int]


def changed_rows(old: Tensor, new: Tensor, words: Sequence[Words]) -> tuple[Tensor, Tensor]:
    """bool [N, L] twice, of float [N, L, C]: the rows of changed words of the recorded prompts, and
    of the new ones. ``words`` has those of each picture, in the halves of guidance one after the
    other.

    A causal text encoder changes all rows behind the first changed word a little, one that is not
    changes all. So where ``words`` are not known, or are none of these rows, they are those that
    changed most: by the lengths of the changes, above Otsu's threshold.
    """
    differs, most = (new != old).any(-1), _most_changed(old, new)
    rows = torch.stack([most, most])
    for item in range(len(new) if words else 0):
        own = words[item % len(words)]
        if _are_of(own, differs[item]):
            rows[:, item] = False
            for side, places in enumerate((own.recorded, own.new)):
                rows[side, item, [place for place in places if place < differs.shape[1]]] = True
    return rows[0], rows[1]


def _most_changed(old: Tensor, new: Tensor) -> Tensor:
    """bool [N, L]; where all changed as much, all of them."""
    change = (new.float() - old.float()).norm(dim=-1)
    most = above_otsu(scaled(change[:, None]))[:, 0]
    return torch.where(most.any(1, True), most, change > 0)


def _are_of(words: Words, differs: Tensor) -> bool:
    """Could these rows, bool [L], be the ones that such a change makes differ? Before its first
    word all are as they were, or, where the text encoder is not causal, none is. A template in
    front of the prompt would shift them."""
    if not bool(differs.any()):
        return False
    first = min(words.recorded | words.new, default=len(differs))
    before = differs[:first]
    return first < len(differs) and bool(differs[first]) and bool((before == before[:1]).all())
