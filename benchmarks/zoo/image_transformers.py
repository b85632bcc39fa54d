"""Transformers on images: text apart, and CogView and Lumina 2, which join it to the image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    Transformer2DModel,
    UVit2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from torch import nn

from benchmarks.zoo_noise import randomised

from . import Example, full, tiny

LATENTS = {"dilate": 1}
"""Wider masks would cover all of these small images, and packing would go untested."""


@tiny("DiTTransformer2DModel")
def dit() -> Example:
    return _dit(
        sample_size=16,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_embeds_ada_norm=10,
    )


@full("dit-xl-2-256")
def dit_xl_2_256() -> Example:
    return _dit(sample_size=32, out_channels=8)


def _dit(sample_size: int, **config: Any) -> Example:
    model = DiTTransformer2DModel(sample_size=sample_size, **config)
    inputs = {
        "hidden_states": torch.randn(1, 4, sample_size, sample_size),
        "timestep": torch.tensor([10]),
        "class_labels": torch.tensor([3]),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("PixArtTransformer2DModel")
def pixart() -> Example:
    return _pixart(
        words=7,
        sample_size=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=24,
        use_additional_conditions=False,
    )


@full("pixart-sigma-1024")
def pixart_sigma_1024() -> Example:
    return _pixart(
        words=300,
        sample_size=128,
        caption_channels=4096,
        interpolation_scale=2,
        use_additional_conditions=False,
    )


def _pixart(words: int, sample_size: int, caption_channels: int, **config: Any) -> Example:
    model = PixArtTransformer2DModel(
        sample_size=sample_size, caption_channels=caption_channels, **config
    )
    valid = torch.ones(1, words)
    valid[:, words // 2 :] = 0
    inputs = {
        "hidden_states": torch.randn(1, 4, sample_size, sample_size),
        "encoder_hidden_states": torch.randn(1, words, caption_channels),
        "encoder_attention_mask": valid,
        "timestep": torch.tensor([10]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("Transformer2DModel")
def transformer_2d() -> Example:
    """The block of a UNet, on features."""
    model = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        num_layers=2,
        norm_num_groups=8,
        cross_attention_dim=24,
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 16, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("SanaTransformer2DModel")
def sana() -> Example:
    return _sana(
        words=7,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=16,
    )


@full("sana-1600m-1024")
def sana_1600m_1024() -> Example:
    return _sana(words=300, in_channels=32, caption_channels=2304, sample_size=32)


def _sana(
    words: int, in_channels: int, caption_channels: int, sample_size: int, **config: Any
) -> Example:
    model = SanaTransformer2DModel(
        in_channels=in_channels,
        caption_channels=caption_channels,
        sample_size=sample_size,
        **config,
    )
    valid = torch.ones(1, words)
    valid[:, words // 2 :] = 0
    inputs = {
        "hidden_states": torch.randn(1, in_channels, sample_size, sample_size),
        "encoder_hidden_states": torch.randn(1, words, caption_channels),
        "encoder_attention_mask": valid,
        "timestep": torch.tensor([10]),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("HunyuanDiT2DModel")
def hunyuan_dit() -> Example:
    """Four blocks: the last one is joined to the first one by a skip."""
    return _hunyuan_dit(
        sample_size=32,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        cross_attention_dim=24,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=4,
        text_len_t5=5,
    )


@full("hunyuan-dit-1.2")
def hunyuan_dit_1_2() -> Example:
    return _hunyuan_dit(
        sample_size=128,
        num_layers=40,
        num_attention_heads=16,
        attention_head_dim=88,
        hidden_size=1408,
        mlp_ratio=4.3637,
        cross_attention_dim=1024,
        cross_attention_dim_t5=2048,
        pooled_projection_dim=1024,
        text_len=77,
        text_len_t5=256,
        use_style_cond_and_image_meta_size=False,
    )


def _hunyuan_dit(sample_size: int, **config: Any) -> Example:
    model = HunyuanDiT2DModel(in_channels=4, patch_size=2, sample_size=sample_size, **config)
    side = sample_size // 2
    rotary = get_2d_rotary_pos_embed(
        config["attention_head_dim"], ((0, 0), (side, side)), (side, side)
    )
    clip, t5 = config["text_len"], config["text_len_t5"]
    inputs = {
        "hidden_states": torch.randn(1, 4, sample_size, sample_size),
        "timestep": torch.tensor([10.0]),
        "encoder_hidden_states": torch.randn(1, clip, config["cross_attention_dim"]),
        "text_embedding_mask": torch.ones(1, clip),
        "encoder_hidden_states_t5": torch.randn(1, t5, config["cross_attention_dim_t5"]),
        "text_embedding_mask_t5": torch.ones(1, t5),
        "image_rotary_emb": rotary,
    }
    if config.get("use_style_cond_and_image_meta_size", True):
        inputs |= {
            "image_meta_size": torch.tensor([[1024.0, 1024.0, 1024.0, 1024.0, 0.0, 0.0]]),
            "style": torch.tensor([0]),
        }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("LuminaNextDiT2DModel")
def lumina_next() -> Example:
    model = LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=24,
    )
    valid = torch.ones(1, 7)
    valid[:, 4:] = 0
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "encoder_mask": valid,
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 64, 64),
        "cross_attention_kwargs": {},
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("Lumina2Transformer2DModel")
def lumina2() -> Example:
    model = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=48,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=24,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("CogView3PlusTransformer2DModel")
def cogview3_plus() -> Example:
    model = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=16,
    )
    return _cogview(model, side=16, words=7)


@tiny("CogView4Transformer2DModel")
def cogview4() -> Example:
    model = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=16,
        rope_axes_dim=(16, 16),
    )
    return _cogview(model, side=16, words=7)


@full("cogview4-6b")
def cogview4_6b() -> Example:
    model = CogView4Transformer2DModel(
        num_layers=28, attention_head_dim=128, num_attention_heads=32
    )
    return _cogview(model, side=128, words=224)


def _cogview(model: nn.Module, side: int, words: int) -> Example:
    size = torch.tensor([[8.0 * side, 8.0 * side]])
    inputs = {
        "hidden_states": torch.randn(1, model.config.in_channels, side, side),
        "encoder_hidden_states": torch.randn(1, words, model.config.text_embed_dim),
        "timestep": torch.tensor([10]),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(1, 2),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=LATENTS)


@tiny("UVit2DModel")
def uvit() -> Example:
    return _uvit(
        side=16,
        words=7,
        hidden_size=16,
        cond_embed_dim=8,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=8,
        vocab_size=34,
        codebook_size=32,
        in_channels=8,
        block_out_channels=16,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )


@full("amused-512")
def amused_512() -> Example:
    return _uvit(
        side=32,
        words=77,
        cond_embed_dim=768,
        encoder_hidden_size=768,
        codebook_size=8192,
        sample_size=32,
    )


def _uvit(
    side: int,
    words: int,
    cond_embed_dim: int,
    encoder_hidden_size: int,
    codebook_size: int,
    **config: Any,
) -> Example:
    model = UVit2DModel(
        cond_embed_dim=cond_embed_dim,
        encoder_hidden_size=encoder_hidden_size,
        codebook_size=codebook_size,
        downsample=True,
        upsample=True,
        **config,
    )
    inputs = {
        "input_ids": torch.randint(1, codebook_size, (1, side, side)),
        "encoder_hidden_states": torch.randn(1, words, encoder_hidden_size),
        "pooled_text_emb": torch.randn(1, cond_embed_dim),
        "micro_conds": torch.tensor([[512.0, 512.0, 0.0, 0.0, 6.0]]),
    }
    options = {"grids": {"input_ids": (side, side)}}
    return Example(randomised(model), inputs, edit="input_ids", options=options)
