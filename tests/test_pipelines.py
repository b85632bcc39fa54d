"""A diffusers pipeline and its adapters, with sparse modules in the places of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

from sparsify import sparsify
from tests.small import corner

Pipe = Any  # diffusers' pipelines are not typed


def pipeline() -> Pipe:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    parts = (vae.eval(), None, None, unet.eval(), scheduler, None, None)
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lora(rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False
    )


CHANGES: dict[str, Callable[[Pipe], Any]] = {
    "one, weakly": lambda pipe: pipe.set_adapters("first", 0.2),
    "the other": lambda pipe: pipe.set_adapters("second"),
    "both": lambda pipe: pipe.set_adapters(["first", "second"], [0.5, 0.7]),
    "off": lambda pipe: pipe.disable_lora(),
    "on": lambda pipe: pipe.enable_lora(),
    "fused": lambda pipe: pipe.fuse_lora(components=["unet"]),
    "parted": lambda pipe: pipe.unfuse_lora(components=["unet"]),
    "one gone": lambda pipe: pipe.delete_adapters("first"),
    "unloaded": lambda pipe: pipe.unload_lora_weights(),
}


@torch.no_grad()
def test_adapters_are_switched_through_the_pipeline() -> None:
    pipe, plain = pipeline(), pipeline()
    pipe.unet = sparse = sparsify(pipe.unet, backend="eager", policy="exact")
    for own in (pipe, plain):
        torch.manual_seed(1)
        own.unet.add_adapter(lora(2), "first")
        own.unet.add_adapter(lora(4), "second")
    inputs = torch.randn(1, 4, 16, 16), torch.tensor(5), torch.randn(1, 3, 8)
    mask = torch.ones(16, 16, dtype=torch.bool)
    before = plain.unet(*inputs).sample
    for name, change in CHANGES.items():
        change(pipe)
        change(plain)
        want = plain.unet(*inputs).sample
        assert name in ("fused", "one gone") or not torch.equal(want, before), name
        before = want
        assert torch.equal(sparse(*inputs).sample, want), name
        output, baseline = sparse.record(*inputs)
        torch.testing.assert_close(output.sample, want, rtol=1e-4, atol=1e-5)
        got = sparse.update(baseline, *inputs, mask=mask).sample
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["fixed", "exact"])
def test_a_pipeline_is_recorded_and_edited_as_it_is(policy: str, tmp_path: Path) -> None:
    pipe = pipeline()
    latents = torch.randn(1, 4, 16, 16)
    embeds = {"prompt_embeds": torch.ones(1, 3, 8), "negative_prompt_embeds": torch.zeros(1, 3, 8)}

    def sampled(start: torch.Tensor) -> np.ndarray:
        result = pipe(
            **embeds, latents=start, num_inference_steps=3, output_type="np", height=32, width=32
        )
        return result.images

    edited = torch.where(corner(), latents + 1, latents)
    want = [sampled(start) for start in (latents, edited)]
    options = {"backend": "eager", "policy": policy}
    pipe.unet = unet = sparsify(pipe.unet, **options)
    pipe.vae = vae = sparsify(pipe.vae, method="decode", **options)
    with unet.recording() as steps, vae.recording() as picture:
        np.testing.assert_allclose(sampled(latents), want[0], atol=1e-4)
    assert (len(steps.calls), len(picture.calls)) == (3, 1)
    everything = torch.ones_like(corner())
    with steps.editing(everything), picture.editing(everything):
        np.testing.assert_allclose(sampled(edited), want[1], atol=1e-4)
    np.testing.assert_allclose(sampled(edited), want[1], atol=1e-4)
    pipe.save_pretrained(tmp_path)
    assert {"unet", "vae"} <= {path.name for path in tmp_path.iterdir()}
