"""What finds masks: the clean latents that schedulers tell of, and the words that changed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from sparsify import ConfigError
from sparsify.changed_words import Words, changed_rows
from sparsify.editor.clean import require_clean
from sparsify.editor.prompts import changed_words
from sparsify.editor.steps import watched
from tests.studio import Tokenizer

UNCLIPPED: dict[str, Any] = {"clip_sample": False}
TELLING: dict[str, dict[str, Any]] = {
    "DDIMScheduler": UNCLIPPED,
    "DDPMScheduler": UNCLIPPED,
    "CogVideoXDDIMScheduler": UNCLIPPED,
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "EDMEulerScheduler": {},
}
CONVERTING: dict[str, dict[str, Any]] = {
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
OTHERS = ("KDPM2DiscreteScheduler", "SCMScheduler", "RePaintScheduler", "IPNDMScheduler")


def run(scheduler: Any, told: Callable[[Any, Any], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The clean latents of each of four steps, and those that the scheduler ``told``."""
    torch.manual_seed(0)
    scheduler.set_timesteps(4)
    latents = torch.randn(2, 3, 4, 4) * getattr(scheduler, "init_noise_sigma", 1.0)
    found, known = list[Tensor](), list[Tensor]()
    with watched(scheduler, lambda time, latents: latents, found.append):
        for time in scheduler.timesteps:
            made = scheduler.step(torch.randn_like(latents), time, latents)
            known.append(told(scheduler, made))
            latents = made.prev_sample
    return list(zip(found, known, strict=True))


def require_alike(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for clean, want in pairs:
        torch.testing.assert_close(clean, want, rtol=1e-3, atol=1e-3 * float(want.std()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_clean_latents_are_those_that_schedulers_predict(prediction: str) -> None:
    for name, options in (TELLING | CONVERTING).items():
        scheduler = getattr(diffusers, name)(prediction_type=prediction, **options)
        require_clean(scheduler)
        if name in TELLING:
            require_alike(run(scheduler, lambda own, made: made.pred_original_sample))
        else:
            require_alike(run(scheduler, lambda own, made: own.model_outputs[-1]))


def test_clean_latents_of_flows() -> None:
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        scheduler = getattr(diffusers, name)(**FLOW)
        require_alike(run(scheduler, lambda own, made: own.model_outputs[-1]))
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    require_clean(flow)
    require_alike(run(flow, lambda own, made: made.prev_sample)[-1:])


@pytest.mark.parametrize("name", OTHERS)
def test_schedulers_that_do_not_tell_are_refused(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    with pytest.raises(ConfigError, match=f"a {name} does not tell"):
        require_clean(scheduler)


def words(old: Any, new: Any, tokenizers: dict[str, Any], pictures: int = 1) -> tuple[Words, ...]:
    changes = new if isinstance(new, dict) else {"prompt": new}
    arguments = {"prompt": old, "negative_prompt": "sun"}
    pipe = SimpleNamespace(components=tokenizers)
    return changed_words(pipe, arguments, {**arguments, **changes}, pictures)


def of(recorded: set[int], new: set[int]) -> Words:
    return Words(frozenset(recorded), frozenset(new))


def test_changed_words_are_tokens_that_only_one_prompt_has() -> None:
    one = {"tokenizer": Tokenizer()}
    assert words("a sun", "a hat", one) == (of({2}, {2}),)
    assert words("a picture", "a picture with hat", one) == (of(set(), {3, 4}),)
    assert words("a picture with hat", "a hat", one) == (of({2, 3}, set()),)
    assert words(["a sun", "a"], ["a sun", "bag"], one, 4) == (
        *[of(set(), set())] * 2,
        *[of({1}, {1})] * 2,
    )
    two = one | {"tokenizer_2": Tokenizer(), "text_encoder": None}
    assert words("a sun", "a hat", two) == (of({2}, {2}),)


def test_words_are_not_known() -> None:
    def backwards(text: str) -> Any:
        return SimpleNamespace(input_ids=Tokenizer()(text).input_ids[::-1])

    one = {"tokenizer": Tokenizer()}
    assert words("a sun", "hat sun", {}) == words("a sun", "hat sun", {"tokenizer": None}) == ()
    assert words("a sun", "hat sun", one | {"tokenizer_2": backwards}) == ()
    assert words("a sun", {"prompt": "a hat", "negative_prompt": "bag"}, one) == ()
    assert words("a sun", {"negative_prompt": "bag"}, one) == ()
    assert words(None, "a hat", one) == words("a sun", None, one) == ()


def rows(changes: list[float], *words: Words) -> tuple[list[int], list[int]]:
    old = torch.zeros(1, len(changes), 3)
    new = old + torch.tensor(changes)[None, :, None]
    found = changed_rows(old, new, words)
    return tuple(own[0].nonzero().flatten().tolist() for own in found)  # type: ignore[return-value]


def test_rows_of_words_that_are_known_if_they_can_be_these() -> None:
    word = of({1}, {2})
    assert rows([0, 0.1, 0.1, 5, 5], word) == ([1], [2])  # causal
    assert rows([0.1, 0.1, 0.1, 5, 5], word) == ([1], [2])  # all rows differ
    assert rows([0, 0, 0.1, 5, 5], word) == ([3, 4], [3, 4])  # not from its place on
    assert rows([0.1, 0, 0.1, 5, 5], word) == ([3, 4], [3, 4])
    assert rows([0, 0, 0, 0, 0], word) == ([], [])
    assert rows([0, 0.1, 0.1, 5, 5], of({1}, {2, 9})) == ([1], [2])  # cut off
    assert rows([0, 1, 1], of(set(), {7})) == ([1, 2], [1, 2])


def test_rows_that_changed_most() -> None:
    assert rows([0, 0, 5, 0.1, 0.2]) == ([2], [2])
    assert rows([1, 1, 1]) == ([0, 1, 2], [0, 1, 2])
    assert rows([0, 0, 0]) == ([], [])
