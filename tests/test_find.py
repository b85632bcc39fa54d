"""The ways to find the mask of a prompt, where it is known what each has to find."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, DDIMScheduler
from sparsify.codegen.tables import dilate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsify import ConfigError, Editor
from sparsify.finding import Find
from tests.studio import BAGS, GROWN, HATS, TURNED, Studio, Tokenizer

SUN, HAT, BAG = (f"a picture with {word}" for word in ("sun", "hat", "bag"))
AFTER = 2
GUIDANCE = ("batch", "calls", "none")
WAYS: tuple[Find, ...] = ("latents", "attention", "reference")


TOKENS = Tokenizer()


@cache
def studio(**options: Any) -> Editor:
    return Editor(Studio(**options), backend="eager", dilate=1)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    studio.cache_clear()


def masks(editor: Editor, old: Any, new: Any, find: Find, **options: Any) -> Tensor:
    """bool [N, H, W]: without a margin, of each picture; the halves of guidance have the same."""
    first = editor(prompt=old, generator=seeded(), **options)
    mask = editor.edit(first, prompt=new, after=AFTER, margin=0, find=find).mask
    assert mask is not None
    halves = mask.unflatten(0, (-1, len(first.images)))
    assert (halves == halves[:1]).all()
    return halves[0]


def known(find: Find, who: Tensor) -> Tensor:
    known = {"latents": TURNED | GROWN, "attention": who, "reference": TURNED}
    return torch.stack([known[way] for way in ((find,) if isinstance(find, str) else find)]).any(0)


@pytest.mark.parametrize("find", WAYS)
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_each_way_finds_what_it_looks_for(guidance: str, find: Find) -> None:
    found = masks(studio(guidance=guidance), SUN, HAT, find)
    assert torch.equal(found, known(find, HATS)[None])


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_items_have_masks_of_their_own(guidance: str) -> None:
    editor = studio(guidance=guidance, tokenizer=TOKENS)
    both: Find = ("attention", "reference")
    for options, times in (({}, 1), ({"images_per_prompt": 2}, 2)):
        found = masks(editor, [SUN, SUN, SUN], [HAT, SUN, BAG], both, **options)
        want = torch.stack([known(both, HATS), torch.zeros_like(HATS), known(both, BAGS)])
        assert torch.equal(found, want.repeat_interleave(times, 0))


def test_several_ways_are_their_union() -> None:
    editor = studio()
    for find in (("attention", "reference"), ("latents", "attention"), WAYS):
        assert torch.equal(masks(editor, SUN, HAT, find), known(find, HATS)[None])  # type: ignore[arg-type]


def test_a_mask_of_ones_own_is_added_to_what_is_found() -> None:
    """It is found, too, if it is said how, and not for how long."""
    editor = studio()
    first = editor(prompt=SUN, generator=seeded())
    result = editor.edit(first, prompt=HAT, mask=BAGS, find="attention", margin=0)
    assert torch.equal(result.mask.any(0), BAGS | HATS)


@pytest.mark.parametrize("find", [*WAYS, WAYS])
def test_previews_are_the_masks_of_edits(find: Find) -> None:
    editor = studio()
    first = editor(prompt=SUN, generator=seeded())
    mask = editor.preview(first, prompt=HAT, after=AFTER, find=find)
    assert torch.equal(mask, editor.edit(first, prompt=HAT, after=AFTER, find=find).mask)
    assert torch.equal(mask, dilate(editor.preview(first, prompt=HAT, margin=0, find=find), 1))


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_an_unchanged_prompt_has_no_mask_and_runs_nothing(guidance: str) -> None:
    editor = studio(guidance=guidance, tokenizer=TOKENS)
    first = editor(prompt=SUN, generator=seeded())
    with FlopCounterMode(display=False) as work:
        same = editor.edit(first, prompt=SUN, find=WAYS)  # type: ignore[arg-type]
    assert torch.equal(same.images, first.images)
    assert not same.mask.any()
    assert work.get_total_flops() == 0


def test_words_that_are_gone_are_looked_for_in_the_recorded_run() -> None:
    for tokenizer in (None, TOKENS):
        editor = studio(tokenizer=tokenizer)
        assert torch.equal(masks(editor, HAT, SUN, "attention"), HATS[None])
        assert torch.equal(masks(editor, HAT, BAG, "attention"), (HATS | BAGS)[None])
    assert torch.equal(masks(editor, HAT, "a picture", "attention"), HATS[None])


def test_tokens_tell_the_words_of_causal_encoders() -> None:
    """Of which a later row may change more than that of the word."""
    editor = studio(leak=1.0, tokenizer=TOKENS)
    assert torch.equal(masks(editor, SUN, HAT, "attention"), HATS[None])
    others = "a sun with picture", "a bag with picture"
    found = masks(editor, [SUN, others[0]], [HAT, others[1]], "attention")
    assert torch.equal(found, torch.stack([HATS, BAGS]))
    blind = studio(leak=1.0)
    assert (masks(blind, SUN, HAT, "attention") & BAGS).any()
    little = studio(leak=0.02)
    assert torch.equal(masks(little, SUN, HAT, "attention"), HATS[None])


def test_prompts_that_are_embeddings() -> None:
    editor = studio()
    old, new = (editor._pipe.encoded(text)[None] for text in (SUN, HAT))
    first = editor(prompt_embeds=old, generator=seeded())
    mask = editor.edit(first, prompt_embeds=new, find="attention", margin=0).mask
    assert torch.equal(mask.any(0), HATS)


def test_what_is_refused() -> None:
    editor = studio(has_words=False)
    first = editor(prompt=SUN, generator=seeded())
    with pytest.raises(ConfigError, match="find='attention': in the graph of this model no site"):
        editor.edit(first, prompt=HAT, find="attention")
    with pytest.raises(ConfigError, match="find='words': one of 'latents', 'attention'"):
        editor.edit(first, prompt=HAT, find="words")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"find=\(\): one of"):
        editor.preview(first, prompt=HAT, find=())
    editor._pipe.scheduler = CMStochasticIterativeScheduler()
    with pytest.raises(ConfigError, match="a CMStochasticIterativeScheduler does not tell"):
        editor.edit(first, prompt=HAT, find=("latents", "reference"))
    editor._pipe.scheduler = DDIMScheduler(prediction_type="score")
    with pytest.raises(ConfigError, match="a DDIMScheduler does not tell"):
        editor.edit(first, prompt=HAT, find="reference")
