"""Attention to words, as it is read from graphs, is that of the models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import SparseModule, sparsify
from sparsify.attention import attention_to_changes
from sparsify.changed_words import Words
from sparsify.signature import bind
from tests.small import small_inputs, small_unet

WORD = Words(frozenset(), frozenset({1, 3}))
SIDE, LENGTH = 4, 5


class Joint(nn.Module):
    """Sites and words attend to each other, in an order, or only sites to words; twice."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.qkv, self.text = nn.Linear(8, 24), nn.Linear(8, 24)

    def forward(self, sample: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        tokens = sample.flatten(2).transpose(1, 2)
        for _ in range(2):
            tokens, words = self._block(tokens, words, mask)
        return tokens.transpose(1, 2).reshape(sample.shape)

    def _block(self, tokens: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        own, text = (
            [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in made.chunk(3, -1)]
            for made in (self.qkv(tokens), self.text(words))
        )
        one = torch.ones_like(own[0][:, 0, :, 0])
        pairs = {
            "words first": (zip(text, own, strict=True), (mask, one), (LENGTH, SIDE**2)),
            "words last": (zip(own, text, strict=True), (one, mask), (SIDE**2, LENGTH)),
        }
        if self.order == "cross":
            bias = (1 - mask[:, None, None, :]) * -1e4
            y = self._attend(own[0], text[1], text[2], bias)
            return tokens + y, words
        parts, masks, sizes = pairs[self.order]
        q, k, v = (torch.cat(pair, 2) for pair in parts)
        both = self._attend(q, k, v, (1 - torch.cat(masks, 1)[:, None, None, :]) * -1e4)
        first, last = both.split(sizes, 1)
        if self.order == "words first":
            first, last = last, first
        return tokens + first, words + last

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)


def recorded(model: nn.Module, *inputs: Tensor) -> tuple[SparseModule, Any, Any]:
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(*inputs)
    return sparse, sparse._engine.program_of(baseline), baseline


@torch.no_grad()
def probabilities(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """[N, queries, keys] of each attention, in the mean over heads."""
    seen, attend = list[Tensor](), F.scaled_dot_product_attention

    def looked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        seen.append((q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1).mean(1))
        return attend(q, k, v, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", looked)
        model(*inputs)
    return seen


@pytest.mark.parametrize("order", ["words first", "words last", "cross"])
def test_attention_is_that_of_the_model(order: str) -> None:
    torch.manual_seed(0)
    model = Joint(order).eval()
    sample, words = torch.randn(3, 8, SIDE, SIDE), torch.randn(3, LENGTH, 8)
    mask = torch.ones(3, LENGTH)
    mask[2, 4:] = 0
    _, program, baseline = recorded(model, sample, words, mask)
    new = words.clone()
    new[1:] += 1
    inputs = sample + 1, new, mask
    seen = probabilities(model, inputs)
    call = bind(model, inputs, {}).like(baseline.signature)
    found = attention_to_changes(program, baseline, call, (WORD,))
    assert found is not None
    at = {"words first": 0, "words last": SIDE**2, "cross": 0}[order]
    sites = slice(LENGTH, None) if order == "words first" else slice(SIDE**2)
    paid = torch.stack([own[:, sites, [at + 1, at + 3]].sum(-1) for own in seen]).mean(0)
    torch.testing.assert_close(found[1:].flatten(1), paid[1:], rtol=1e-4, atol=1e-5)
    assert not found[0].any()  # its words did not change


def test_padding_is_no_word() -> None:
    torch.manual_seed(0)
    model = Joint("cross").eval()
    sample, words, mask = torch.randn(1, 8, SIDE, SIDE), torch.randn(1, LENGTH, 8), torch.ones(1, 5)
    mask[:, 4] = 0
    _, program, baseline = recorded(model, sample, words, mask)
    new = words.clone()
    new[:, 4] += 9
    call = bind(model, (sample, new, mask), {}).like(baseline.signature)
    found = attention_to_changes(program, baseline, call, ())
    assert found is not None
    assert not found.any()
    new[:, 2] += 1
    call = bind(model, (sample, new, mask), {}).like(baseline.signature)
    assert attention_to_changes(program, baseline, call, ()).any()  # type: ignore[union-attr]


def test_coarser_grids_are_brought_to_the_pictures() -> None:
    inputs = small_inputs()
    _, program, baseline = recorded(small_unet(), *inputs)
    call = bind(small_unet(), inputs, {}).like(baseline.signature)
    same = attention_to_changes(program, baseline, call, ())
    assert same is not None
    assert not same.any()
    call = bind(small_unet(), (*inputs[:2], inputs[2] + 1), {}).like(baseline.signature)
    every = Words(frozenset(), frozenset(range(5)))
    found = attention_to_changes(program, baseline, call, (every,))
    torch.testing.assert_close(found, torch.ones(1, 1, 16, 16))
