"""Transformers on one sequence of text and image; most take an image as a row of tokens."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    OmniGenTransformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, full, tiny
from .image_transformers import LATENTS


def _positions(axes: int, side: int) -> Tensor:
    """The place of each token of the image: frame, row, column and, of four, the word."""
    sizes = (1, side, side, 1)[:axes]
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))


def _words(axes: int, words: int) -> Tensor:
    """The place of each token of the text: zeros, and the word on the last of four axes."""
    places = torch.zeros(words, axes, dtype=torch.long)
    if axes == 4:
        places[:, 3] = torch.arange(words)
    return places


def _packed(model: nn.Module, side: int, inputs: dict[str, Any]) -> Example:
    options = {"grids": {"hidden_states": (side, side)}, "dilate": 0}
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


@tiny("SD3Transformer2DModel")
def sd3() -> Example:
    """The second block has the second attention of Stable Diffusion 3.5."""
    return _sd3(
        words=7,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        dual_attention_layers=(1,),
        qk_norm="rms_norm",
    )


@full("stable-diffusion-3-medium")
def stable_diffusion_3_medium() -> Example:
    return _sd3(
        words=333,
        sample_size=128,
        in_channels=16,
        num_layers=24,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )


def _sd3(words: int, **config: Any) -> Example:
    side = config["sample_size"]
    inputs = {
        "hidden_states": torch.randn(1, config["in_channels"], side, side),
        "encoder_hidden_states": torch.randn(1, words, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"]),
        "timestep": torch.tensor([10]),
    }
    model = randomised(SD3Transformer2DModel(**config))
    return Example(model, inputs, edit="hidden_states", options=LATENTS)


@tiny("FluxTransformer2DModel")
def flux() -> Example:
    return _flux(
        side=16,
        words=7,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )


@full("flux-dev")
def flux_dev() -> Example:
    return _flux(
        side=64, words=512, in_channels=64, joint_attention_dim=4096, pooled_projection_dim=768
    )


def _flux(side: int, words: int, **config: Any) -> Example:
    inputs = {
        "hidden_states": torch.randn(1, side * side, config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, words, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"]),
        "timestep": torch.tensor([0.3]),
        "img_ids": _positions(3, side).float(),
        "txt_ids": _words(3, words).float(),
        "guidance": torch.tensor([3.5]),
    }
    return _packed(FluxTransformer2DModel(guidance_embeds=True, **config), side, inputs)


@tiny("Flux2Transformer2DModel")
def flux2() -> Example:
    return _flux2(
        side=16,
        words=7,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
    )


@full("flux-2-dev")
def flux2_dev() -> Example:
    return _flux2(side=64, words=512, in_channels=128, joint_attention_dim=15360)


def _flux2(side: int, words: int, **config: Any) -> Example:
    inputs = {
        "hidden_states": torch.randn(1, side * side, config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, words, config["joint_attention_dim"]),
        "timestep": torch.tensor([0.3]),
        "img_ids": _positions(4, side)[None],
        "txt_ids": _words(4, words)[None],
        "guidance": torch.tensor([3.5]),
    }
    return _packed(Flux2Transformer2DModel(**config), side, inputs)


@tiny("Flux3Transformer2DModel")
def flux3() -> Example:
    """With a reference image of 4x4 tokens."""
    model = Flux3Transformer2DModel(
        in_channels=4,
        cond_in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
    )
    inputs = {
        "hidden_states": torch.randn(1, 256, 4),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([0.3]),
        "img_ids": _positions(4, 16),
        "txt_ids": _words(4, 7),
        "image_cond_hidden_states": torch.randn(1, 16, 4),
        "image_cond_ids": _positions(4, 4) + torch.tensor([10, 0, 0, 0]),
    }
    return _packed(model, 16, inputs)


@tiny("ChromaTransformer2DModel")
def chroma() -> Example:
    return _chroma(
        side=16,
        words=7,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )


@full("chroma1-hd")
def chroma1_hd() -> Example:
    return _chroma(side=64, words=512, in_channels=64, joint_attention_dim=4096)


def _chroma(side: int, words: int, **config: Any) -> Example:
    valid = torch.ones(1, words + side * side)
    valid[:, words // 2 : words] = 0
    inputs = {
        "hidden_states": torch.randn(1, side * side, config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, words, config["joint_attention_dim"]),
        "timestep": torch.tensor([0.3]),
        "img_ids": _positions(3, side).float(),
        "txt_ids": _words(3, words).float(),
        "attention_mask": valid,
    }
    return _packed(ChromaTransformer2DModel(**config), side, inputs)


@tiny("AuraFlowTransformer2DModel")
def aura_flow() -> Example:
    return _aura_flow(
        side=32,
        words=7,
        sample_size=32,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )


@full("aura-flow-0.3")
def aura_flow_0_3() -> Example:
    return _aura_flow(side=128, words=256, joint_attention_dim=2048, pos_embed_max_size=9216)


def _aura_flow(side: int, words: int, **config: Any) -> Example:
    inputs = {
        "hidden_states": torch.randn(1, 4, side, side),
        "encoder_hidden_states": torch.randn(1, words, config["joint_attention_dim"]),
        "timestep": torch.tensor([0.3]),
    }
    model = randomised(AuraFlowTransformer2DModel(**config))
    return Example(model, inputs, edit="hidden_states", options=LATENTS)


@tiny("QwenImageTransformer2DModel")
def qwen_image() -> Example:
    return _qwen_image(
        side=16,
        words=7,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )


@full("qwen-image")
def qwen_image_full() -> Example:
    return _qwen_image(side=64, words=256, in_channels=64, joint_attention_dim=3584)


def _qwen_image(side: int, words: int, **config: Any) -> Example:
    inputs = {
        "hidden_states": torch.randn(1, side * side, config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, words, config["joint_attention_dim"]),
        "timestep": torch.tensor([0.3]),
        "img_shapes": [[(1, side, side)]],
    }
    return _packed(QwenImageTransformer2DModel(**config), side, inputs)


@tiny("QwenImage21Transformer2DModel")
def qwen_image_21() -> Example:
    model = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=24,
        mlp_ratio=2,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, 64, 4),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([0.3]),
        "img_shapes": [[(1, 8, 8)]],
        "img_mask": torch.arange(7 + 64 // 4)[None] >= 7,
    }
    return _packed(model, 8, inputs)


class OneImage(nn.Module):
    """Z-Image on a batch of images and texts in place of lists."""

    def __init__(self, model: ZImageTransformer2DModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        images = list(latents.unsqueeze(2).unbind())
        (output,) = self.model(images, timestep, list(text.unbind()), return_dict=False)
        return torch.stack(output).squeeze(2)


@tiny("ZImageTransformer2DModel")
def z_image() -> Example:
    return _z_image(
        side=32,
        words=32,
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )


@full("z-image-turbo")
def z_image_turbo() -> Example:
    return _z_image(side=128, words=128, in_channels=16, cap_feat_dim=2560)


def _z_image(side: int, words: int, **config: Any) -> Example:
    inputs = {
        "latents": torch.randn(1, config["in_channels"], side, side),
        "timestep": torch.tensor([0.3]),
        "text": torch.randn(1, words, config["cap_feat_dim"]),
    }
    model = ZImageTransformer2DModel(**config)
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int32))  # makes tables in its first call
    return Example(OneImage(randomised(model)).eval(), inputs, edit="latents", options=LATENTS)


@tiny("OmniGenTransformer2DModel")
def omnigen() -> Example:
    """With an image of 8x8 latents in the text; attention is causal outside of the images."""
    model = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=48,
        num_layers=2,
        pad_token_id=0,
        vocab_size=100,
        time_step_dim=8,
        rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
        pos_embed_max_size=16,
    )
    words, total = 24, 24 + 1 + 64
    mask = torch.ones(total, total).tril()
    mask[4:20, 4:20] = 1
    mask[words + 1 :, words + 1 :] = 1
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([0.3]),
        "input_ids": torch.randint(1, 100, (1, words)),
        "input_img_latents": [torch.randn(1, 4, 8, 8)],
        "input_image_sizes": {0: [[4, 20]]},
        "attention_mask": mask[None],
        "position_ids": torch.arange(total)[None],
    }
    options = {**LATENTS, "grids": {"input_img_latents[0]": None}}
    return Example(randomised(model), inputs, edit="hidden_states", options=options)
