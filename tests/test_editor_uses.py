"""What people do with an editor: paint, undo, interrupt, change adapters, go back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from peft import LoraConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sparsify import (
    BaselineError,
    BaselineStore,
    ConfigError,
    Editor,
    MaskError,
    ModelError,
    Schedule,
    SessionError,
    SignatureError,
    SparsifyWarning,
    StoreError,
    enable,
)
from tests.pipelines import CASES
from tests.test_editor import half_of, picture, seeded

STEPS = 4
OTHER = CASES["sd"].changed()


@pytest.fixture(name="pipe")
def _pipe() -> Any:
    return CASES["sd"].build()


@pytest.fixture(name="editor")
def _editor(pipe: Any) -> Editor:
    return Editor(pipe, backend="eager", dilate=1)


def quarter(pictures: Tensor) -> Tensor:
    mask = half_of(pictures)
    mask[: len(mask) // 2] = False
    return mask


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def shown(result: Any) -> Tensor:
    return picture(result.output)


def test_edits_of_edits_in_any_order(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    once = editor.edit(first, mask=mask, **OTHER)
    twice = editor.edit(once, mask=quarter(mask), prompt_embeds=-OTHER["prompt_embeds"])
    same = quarter(mask)
    assert torch.equal(shown(twice)[..., ~same], shown(once)[..., ~same])
    assert (shown(twice) - shown(once))[..., same].abs().mean() > 1e-3
    again = editor.edit(first, mask=mask, **OTHER)
    assert torch.equal(shown(again), shown(once))
    assert torch.equal(shown(editor.edit(twice)), shown(twice))


def test_edits_one_after_the_other_are_one_edit_under_policy_exact(pipe: Any) -> None:
    """Prompts go by the whole picture, so that the last one is followed everywhere."""
    editor = Editor(pipe, backend="eager", policy="exact")
    result = first = editor(**seeded("sd"))
    everything = torch.ones_like(half_of(shown(first)))
    for number in range(5):
        prompt = OTHER["prompt_embeds"] * (number + 1)
        result = editor.edit(result, mask=everything, prompt_embeds=prompt)
    want = editor.edit(first, mask=everything, prompt_embeds=prompt)
    torch.testing.assert_close(shown(result), shown(want), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_painted_picture_is_taken_up_where_it_was_painted(editor: Editor, pipe: Any) -> None:
    first = editor(**seeded("sd"))
    painted, mask = shown(first).clone(), quarter(half_of(shown(first)))
    painted[..., mask] = 1 - painted[..., mask]
    result = editor.edit(first, image=painted, strength=0.5)
    assert result.mask is not None
    assert result.mask.repeat_interleave(2, 0).repeat_interleave(2, 1)[mask].all()
    outside = ~mask
    assert torch.equal(shown(result)[..., outside], shown(first)[..., outside])
    time = int(first.trail.times[2])
    signal = pipe.scheduler.alphas_cumprod[time].sqrt() * pipe.vae.config.scaling_factor
    old, new = (pipe.vae.encode(2 * own - 1).latent_dist.mode() for own in (shown(first), painted))
    got = result.trail.latents[1] - first.trail.latents[1]
    inside = result.mask.expand_as(got)
    torch.testing.assert_close(got[inside], (signal * (new - old))[inside], rtol=1e-3, atol=1e-4)
    assert not got[~inside].any()
    report = result.reports["unet"]
    assert report.macs_now < report.macs_dense


def test_strength_leaves_the_first_steps_as_they_were(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    late = editor.edit(first, mask=mask, strength=0.5, **OTHER)
    pairs = list(zip(first.trail.latents, late.trail.latents, strict=True))
    assert [torch.equal(*pair) for pair in pairs] == [True, True, False, False]
    whole = editor.edit(first, mask=mask, strength=1.0, **OTHER)
    assert torch.equal(shown(whole), shown(editor.edit(first, mask=mask, **OTHER)))
    with pytest.raises(ConfigError, match=r"strength=1\.5"):
        editor.edit(first, mask=mask, strength=1.5)


def test_a_mask_is_looked_at_before_it_is_used(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    mask = editor.preview(first, after=2, **OTHER)
    found = editor.edit(first, after=2, **OTHER)
    assert mask.any() and torch.equal(mask, found.mask)
    own = editor.edit(first, mask=mask, **OTHER)
    assert torch.equal(own.mask, mask)


def test_a_mask_for_each_step(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    small = quarter(shown(first))
    wide = half_of(shown(first))
    result = editor.edit(first, mask=[small, small, wide, wide], **OTHER)
    old, new = first.trail.latents, result.trail.latents
    sites = wide.view(16, 2, 16, 2).any(3).any(1), small.view(16, 2, 16, 2).any(3).any(1)
    assert torch.equal(new[1][..., ~sites[1]], old[1][..., ~sites[1]])
    assert not torch.equal(new[3][..., sites[0] & ~sites[1]], old[3][..., sites[0] & ~sites[1]])
    assert torch.equal(shown(result)[..., ~wide], shown(first)[..., ~wide])
    with pytest.raises(SessionError, match="step 3 has no mask: 2 were given"):
        editor.edit(first, mask=[small, wide], **OTHER)


def test_steps_are_reused_beside_an_edit(editor: Editor) -> None:
    schedule = Schedule.every(2, STEPS)
    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    fast = editor.edit(first, mask=mask, schedule=schedule, **OTHER)
    assert fast.reports["unet"].macs_now < 0.6 * fast.reports["unet"].macs_space
    assert torch.equal(shown(fast)[..., ~mask], shown(first)[..., ~mask])
    recorded = editor(**seeded("sd"), schedule=schedule)
    assert shown(editor.edit(recorded, mask=mask, schedule=schedule, **OTHER)).isfinite().all()


def test_a_refiner_goes_on_from_an_edit() -> None:
    both = CASES["sdxl-refiner"].build()
    base, refiner = (Editor(own, backend="eager") for own in (both.base, both.refiner))
    call, size = CASES["sdxl-refiner"].inputs(), {"height": 32, "width": 32}
    call = {name: value for name, value in call.items() if name not in (*size, "output_type")}
    first = base(**call, **size, denoising_end=0.5, output_type="latent", generator=seed())
    fine = refiner(
        **call, image=first.images, denoising_start=0.5, output_type="pt", generator=seed()
    )
    mask, changed = half_of(shown(fine)), CASES["sdxl-refiner"].changed()
    edited = base.edit(first, mask=mask, **changed)
    result = refiner.edit(fine, mask=mask, image=edited.images, **changed)
    assert torch.equal(shown(result)[..., ~mask], shown(fine)[..., ~mask])
    assert (shown(result) - shown(fine))[..., mask].abs().mean() > 1e-3


def test_an_interrupted_edit_loses_nothing(editor: Editor, pipe: Any) -> None:
    def interrupt(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyboardInterrupt
        return kwargs

    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    want = editor.edit(first, mask=mask, **OTHER)
    kind = type(pipe.scheduler)
    with pytest.raises(KeyboardInterrupt):
        editor.edit(first, mask=mask, callback_on_step_end=interrupt, **OTHER)
    assert type(pipe.scheduler) is kind
    assert torch.equal(shown(editor.edit(first, mask=mask, **OTHER)), shown(want))


def test_random_numbers_are_the_recorded_ones(pipe: Any) -> None:
    """Those of torch itself, too, and of a sampler that draws at each step."""
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    torch.manual_seed(7)
    want = picture(pipe(**CASES["sd"].inputs()))
    editor = Editor(pipe, backend="eager")
    torch.manual_seed(7)
    first = editor(**CASES["sd"].inputs())
    torch.testing.assert_close(shown(first), want, rtol=1e-3, atol=1e-4)
    state = torch.get_rng_state()
    mask = half_of(shown(first))
    edits = [editor.edit(first, mask=mask, **OTHER) for _ in range(2)]
    assert torch.equal(shown(edits[0]), shown(edits[1]))
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_make_results_stale_by_name(editor: Editor, pipe: Any) -> None:
    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    pipe.unet.add_adapter(config, "style")
    with pytest.raises(BaselineError, match="changed after this baseline was recorded"):
        editor.edit(first, mask=mask, **OTHER)
    styled = editor(**seeded("sd"))
    assert not torch.equal(shown(styled), shown(first))
    pipe.set_adapters("style", 0.3)
    with pytest.raises(BaselineError, match="record again"):
        editor.edit(styled, mask=mask, **OTHER)
    weaker = editor(**seeded("sd"))
    assert shown(editor.edit(weaker, mask=mask, **OTHER)).isfinite().all()


def test_the_pipeline_is_as_it_was(pipe: Any, tmp_path: Path) -> None:
    parts, config = dict(pipe.components), dict(pipe.config)
    with Editor(pipe, backend="eager") as editor:
        assert dict(pipe.config) == config
        assert type(pipe.unet).__name__ == "UNet2DConditionModel"
        pipe.enable_attention_slicing()
        pipe.disable_attention_slicing()
        pipe.to(torch.float64)
        assert pipe.unet.dtype == pipe.vae.dtype == torch.float64
        pipe.to(torch.float32)
        pipe.save_pretrained(tmp_path)
        assert (tmp_path / "unet" / "config.json").exists()
        editor(**seeded("sd"))
        assert pipe(**seeded("sd")).images.isfinite().all()
    assert all(pipe.components[name] is part for name, part in parts.items())
    assert {name: pipe.config[name] for name in config} == config


def test_a_loop_of_ones_own(pipe: Any) -> None:
    unet = pipe.unet
    with enable(pipe, backend="eager") as parts:
        assert pipe.unet is parts["unet"] is not unet
        with parts["unet"].recording() as session:
            pipe(**seeded("sd"))
        assert len(session.calls) == STEPS
        assert set(parts) == {"unet", "vae", "vae.encoder"}
    assert pipe.unet is unet


def test_what_cannot_be_edited_is_refused_by_name(editor: Editor, pipe: Any) -> None:
    with pytest.raises(ModelError, match="is no pipeline"):
        Editor(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="'polcy' is not one of"):
        Editor(pipe, polcy="exact")
    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    with pytest.raises(SignatureError, match="promt"):
        editor.edit(first, promt="a cat")
    with pytest.raises(SessionError, match="keep=True"):
        editor.edit(editor.edit(first, mask=mask, keep=False))
    with pytest.raises(SessionError, match="same"):
        editor.edit(first, mask=mask, num_inference_steps=5)
    with pytest.raises(ConfigError, match="after=0"):
        editor.edit(first, after=0, **OTHER)
    with pytest.raises(ConfigError, match="after=4: 4 steps are made"):
        editor.edit(first, after=STEPS, **OTHER)
    with pytest.raises(ConfigError, match="reuses the output"):
        editor.edit(first, schedule=Schedule.every(2, STEPS, reuse="deep"), **OTHER)
    with pytest.raises(MaskError, match="or 1 of them"):
        editor.edit(first, mask=torch.ones(3, 32, 32))
    with pytest.raises(SessionError, match="same scheduler and number of steps"):
        editor.edit(first, mask=mask, num_inference_steps=2)
    with pytest.raises(MaskError, match="3 channels"):
        editor.edit(first, mask=torch.ones(1, 3, 32, 32))
    with pytest.raises(MaskError, match="list of masks is empty"):
        editor.edit(first, mask=[])
    with pytest.raises(SessionError, match="'transformer'"):
        editor.edit(Editor(CASES["sd3"].build(), backend="eager")(**seeded("sd3")))
    other = CASES["sd"].build()
    other.unet.conv_in.weight.data += 1
    with pytest.raises(BaselineError, match=r"weights changed|another model"):
        Editor(other, backend="eager", dilate=1).edit(first, mask=mask)
    exact = Editor(CASES["sd"].build(), backend="eager", policy="exact")
    dense = exact(**seeded("sd"))
    for after in (None, 2):  # with a mask beside it, or without
        with pytest.raises(ConfigError, match="under policy 'exact'"):
            exact.edit(dense, mask=None if after is None else mask, after=after, **OTHER)


def live_bytes() -> int:
    """Of all tensors that somebody holds."""
    gc.collect()
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors()}
    return sum(held.values())


def tensors() -> Iterator[Tensor]:
    for thing in gc.get_objects():
        if type(thing) is Tensor and not thing.is_meta and not isinstance(thing, FakeTensor):
            yield thing


def test_memory_stays_flat_over_many_edits(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    mask = quarter(shown(first))
    sizes = []
    for number in range(24):
        editor.edit(first, mask=mask.roll(number % 3, 0), **OTHER)
        if number in (8, 23):
            sizes.append(live_bytes())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_what_is_kept_of_an_edit_is_made_when_it_is_edited(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    mask = half_of(shown(first))
    once = editor.edit(first, mask=mask, **OTHER)
    assert once.nbytes == 0 < first.nbytes
    editor.edit(once, mask=quarter(mask), prompt_embeds=-OTHER["prompt_embeds"])
    assert once.nbytes >= first.nbytes


def test_reports_count_what_was_run(editor: Editor) -> None:
    first = editor(**seeded("sd"))
    mask = quarter(shown(first))
    report = editor.edit(first, mask=mask, **OTHER).reports["unet"]
    late = editor.edit(first, mask=mask, strength=0.5, **OTHER).reports["unet"]
    assert late.macs_now == report.macs_now / 2
    found = editor.edit(first, after=2, **OTHER)
    share = found.reports["unet"].call.macs_update / report.call.macs_dense
    assert found.reports["unet"].share_left == pytest.approx(0.5 + share / 2)
    nodes = found.reports["unet"].nodes()
    assert sum(node.macs_now for node in nodes) == found.reports["unet"].macs_now
    assert editor.edit(first).reports["unet"].macs_now == 0


def test_runs_are_kept_in_a_store(pipe: Any, tmp_path: Path) -> None:
    plain = Editor(CASES["sd"].build(), backend="eager", dilate=1)
    first = plain(**seeded("sd"))
    mask = half_of(shown(first))
    once = plain.edit(first, mask=mask, **OTHER)
    want = shown(plain.edit(once, mask=quarter(mask), **OTHER))
    with BaselineStore(disk="1 GiB", folder=tmp_path) as store:
        editor = Editor(pipe, backend="eager", dilate=1, store=store)
        first = editor(**seeded("sd"))
        assert store.used["disk"] >= first.nbytes > 0
        once = editor.edit(first, mask=mask, **OTHER)
        assert once.nbytes > 0
        torch.testing.assert_close(shown(editor.edit(once, mask=quarter(mask), **OTHER)), want)
    small = BaselineStore(host=first.nbytes // 2)
    with pytest.raises(StoreError, match=r"4 calls of .* would do"):
        Editor(CASES["sd"].build(), backend="eager", store=small)(**seeded("sd"))


def test_a_model_that_is_called_late_keeps_the_steps_of_the_run() -> None:
    """Of two denoisers, one for each half of the steps."""
    editor = Editor(CASES["wan"].build(), backend="eager")
    first, changed = editor(**seeded("wan")), CASES["wan"].changed()
    mask = half_of(shown(first))
    assert first.first_steps == {"transformer": 0, "transformer_2": 2}
    late = editor.edit(first, mask=mask, strength=0.5, **changed)
    calls = {name: [step.macs_now for step in late.reports[name]] for name in first.first_steps}
    assert not any(calls["transformer"]) and all(calls["transformer_2"])
    old, new = first.trail.latents[-1], late.trail.latents[-1]
    assert (new - old)[..., late.mask].abs().mean() > 1e-4


def test_pictures_that_a_callback_decodes_are_no_results(editor: Editor) -> None:
    def look(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        latents = kwargs["latents"] / pipe.vae.config.scaling_factor
        pipe.vae.decode(latents, return_dict=False, generator=seed())
        return kwargs

    first = editor(**seeded("sd"), callback_on_step_end=look)
    plain = editor(**seeded("sd"))
    mask = half_of(shown(first))
    for callback in (look, None):
        edited = editor.edit(first, mask=mask, callback_on_step_end=callback, **OTHER)
        assert torch.equal(shown(edited)[..., ~mask], shown(first)[..., ~mask])
        assert torch.equal(shown(edited), shown(editor.edit(plain, mask=mask, **OTHER)))


def test_what_users_write_to_later_changes_no_result(editor: Editor) -> None:
    def spoil(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs["latents"].mul_(step + 2)
        return kwargs

    given = {**CASES["sd"].inputs(), "latents": torch.randn(1, 4, 16, 16)}
    first = editor(**given)
    mask = half_of(shown(first))
    want = shown(editor.edit(first, mask=mask, strength=0.5, **OTHER))
    given["latents"].zero_()
    editor.edit(first, mask=mask, strength=0.5, callback_on_step_end=spoil, **OTHER)
    assert torch.equal(shown(editor.edit(first, mask=mask, strength=0.5, **OTHER)), want)


def test_an_editor_whose_models_were_taken_away(editor: Editor, pipe: Any) -> None:
    first = editor(**seeded("sd"))
    editor.close()
    with pytest.raises(SessionError, match=r"pipe\.\w+ is not the model of this editor"):
        editor.edit(first, mask=half_of(shown(first)))
    again = Editor(pipe, backend="eager", dilate=1)
    assert torch.equal(shown(again.edit(first)), shown(first))


def test_a_run_that_ends_before_its_mask_is_found(editor: Editor) -> None:
    def stop(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 0
        return kwargs

    first = editor(**seeded("sd"))
    with pytest.warns(SparsifyWarning, match="before its mask was found"):
        result = editor.edit(first, after=2, callback_on_step_end=stop, **OTHER)
    assert result.mask is None
