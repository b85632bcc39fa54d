"""Transformers on images as rows of tokens [N, L, C], most on one sequence with the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import full, tiny
from . import inputs as new
from .inputs import HEADS, LATENT, ONE_EACH
from .wrapped import ImageOnly


def with_experts(model: Any) -> None:
    """Their weights are allocated and left to the checkpoint."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            nn.init.normal_(parameter, std=0.1)


@new.later
def of_text(start: int, words: int, tokens: int) -> Tensor:
    """Chroma's mask of one sequence: the words from ``start`` on are padding."""
    mask = torch.ones(1, words + tokens)
    mask[:, start:words] = 0
    return mask


LONG, BOOL = torch.long, torch.bool

# a table: several columns a line
# fmt: off
TOKENS, GRID = dict(hidden_states=new.normal(1, 256, 16)), {"grids": {"hidden_states": (16, 16)}}
NARROW = dict(hidden_states=new.normal(1, 256, 4), encoder_hidden_states=new.words(24))
PACKED, LARGE = GRID | {"dilate": 0}, {"grids": {"hidden_states": (64, 64)}, "dilate": 0}
DILATED = GRID | {"dilate": 1}
TEXT, POOLED = dict(encoder_hidden_states=new.words(24)), dict(pooled_projections=new.normal(1, 16))
EARLY, LATE = dict(timestep=new.tensor([0.3])), dict(timestep=new.tensor([0.5]))
IDS = dict(img_ids=new.places(1, 16, 16), txt_ids=new.word_places(7, 3))
LARGE_IDS = dict(img_ids=new.places(1, 64, 64), txt_ids=new.word_places(512, 3))
GUIDANCE = dict(guidance=new.tensor([3.5]))
JOINT = HEADS | dict(in_channels=4, num_single_layers=2, joint_attention_dim=24)
tiny("FluxTransformer2DModel", NARROW | POOLED | EARLY | IDS | GUIDANCE, JOINT | dict(
    guidance_embeds=True, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6)), PACKED)
full("flux-dev", "FluxTransformer2DModel", LARGE_IDS | dict(hidden_states=new.normal(1, 4096, 64),
    encoder_hidden_states=new.words(4096, 512), pooled_projections=new.normal(1, 768)), dict(
    guidance_embeds=True, in_channels=64, joint_attention_dim=4096, pooled_projection_dim=768),
    LARGE)
tiny("Flux2Transformer2DModel", NARROW | EARLY | dict(
    img_ids=new.batched(new.places(1, 16, 16, 1, dtype=LONG)),
    txt_ids=new.batched(new.word_places(7, 4, LONG))) | GUIDANCE, JOINT | dict(
    axes_dims_rope=(4, 4, 4, 4)), PACKED)
full("flux-2-dev", "Flux2Transformer2DModel", dict(hidden_states=new.normal(1, 4096, 128),
    encoder_hidden_states=new.words(15360, 512),
    img_ids=new.batched(new.places(1, 64, 64, 1, dtype=LONG)),
    txt_ids=new.batched(new.word_places(512, 4, LONG))), dict(in_channels=128,
    joint_attention_dim=15360), LARGE)
# with a reference image of 4x4 tokens
tiny("Flux3Transformer2DModel", NARROW | EARLY | dict(img_ids=new.places(1, 16, 16, 1, dtype=LONG),
    txt_ids=new.word_places(7, 4, LONG), image_cond_hidden_states=new.normal(1, 16, 4),
    image_cond_ids=new.shifted(new.places(1, 4, 4, 1, dtype=LONG), 10, 0, 0, 0)), JOINT | dict(
    cond_in_channels=4, axes_dims_rope=(4, 4, 4, 4)), PACKED)
tiny("ChromaTransformer2DModel", NARROW | EARLY | IDS | dict(attention_mask=of_text(3, 7, 256)),
    JOINT | dict(axes_dims_rope=(4, 6, 6), approximator_num_channels=16, approximator_hidden_dim=16,
    approximator_layers=1), PACKED)
full("chroma1-hd", "ChromaTransformer2DModel", LARGE_IDS | dict(
    hidden_states=new.normal(1, 4096, 64), encoder_hidden_states=new.words(4096, 512),
    attention_mask=of_text(256, 512, 4096)), dict(in_channels=64, joint_attention_dim=4096), LARGE)
tiny("QwenImageTransformer2DModel", TOKENS | TEXT | EARLY | dict(img_shapes=[[(1, 16, 16)]]),
    HEADS | dict(in_channels=16, out_channels=4, joint_attention_dim=24, axes_dims_rope=(4, 6, 6)),
    PACKED)
full("qwen-image", "QwenImageTransformer2DModel", dict(hidden_states=new.normal(1, 4096, 64),
    encoder_hidden_states=new.words(3584, 256), img_shapes=[[(1, 64, 64)]]), dict(in_channels=64,
    joint_attention_dim=3584), LARGE)
tiny("QwenImage21Transformer2DModel", dict(hidden_states=new.normal(1, 64, 4)) | TEXT | EARLY |
    dict(img_shapes=[[(1, 8, 8)]],
    img_mask=new.joined(new.zeros(1, 7, dtype=BOOL), new.ones(1, 16, dtype=BOOL), dim=1)), HEADS |
    LATENT | dict(context_in_dim=24, mlp_ratio=2, axes_dims_rope=(4, 6, 6)),
    {"grids": {"hidden_states": (8, 8)}, "dilate": 0})
BRIA_CALL = TOKENS | TEXT | dict(timestep=new.tensor([500.0])) | IDS
BRIA = ONE_EACH | dict(in_channels=16, joint_attention_dim=24, axes_dims_rope=[4, 6, 6])
tiny("BriaTransformer2DModel", BRIA_CALL, BRIA, DILATED)
tiny("BriaFiboTransformer2DModel", TOKENS | TEXT | dict(
    text_encoder_layers=[new.words(12), new.words(12)]) | BRIA_CALL, BRIA | dict(
    text_encoder_dim=12), DILATED)
tiny("LongCatImageTransformer2DModel", BRIA_CALL | LATE | dict(
    img_ids=new.shifted(new.places(1, 16, 16), 1, 0, 0), txt_ids=new.diagonal(7, (0.0, 1.0, 1.0))),
    BRIA | dict(pooled_projection_dim=24), DILATED)
tiny("OvisImageTransformer2DModel", BRIA_CALL | LATE | dict(
    txt_ids=new.diagonal(7, (0.0, 1.0, 1.0))), BRIA | dict(axes_dims_rope=(4, 6, 6)), DILATED)
# features of several layers of the text encoder: [N, L, layers, C], no picture
tiny("Krea2Transformer2DModel", TOKENS | dict(encoder_hidden_states=new.normal(1, 7, 3, 24)) |
    LATE | dict(position_ids=new.joined(new.zeros(7, 3), new.places(1, 16, 16)),
    encoder_attention_mask=new.first(5, 7, BOOL)), HEADS | dict(in_channels=16,
    num_key_value_heads=1, intermediate_size=64, timestep_embed_dim=16, text_hidden_dim=24,
    num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=2,
    text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
    axes_dims_rope=(4, 6, 6)), {"grids": {"hidden_states": (16, 16), "encoder_hidden_states": None},
    "dilate": 1})
# The first block is dense, in the second each of four experts takes half of the tokens. The loop
# over experts: ``use_grouped_mm`` wants bfloat16 when it is captured. Without a mask of the text,
# which the pipeline drops if all of it is valid.
tiny("NucleusMoEImageTransformer2DModel", TOKENS | dict(img_shapes=[(1, 16, 16)]) | TEXT | LATE,
    dict(patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
    num_attention_heads=4, num_key_value_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    dense_moe_strategy="leave_first_block_dense", num_experts=4, moe_intermediate_dim=32,
    capacity_factors=2.0), DILATED, prepare=with_experts)
IDEOGRAM = HEADS | dict(in_channels=16, intermediate_size=64, adaln_dim=16, llm_features_dim=24,
    mrope_section=(4, 2, 2))
ON_PAGE = new.shifted(new.places(1, 16, 16, dtype=LONG), 65536, 65536, 65536)
tiny("Ideogram4Transformer2DModel", TOKENS | TEXT | LATE | dict(
    position_ids=new.batched(new.joined(new.diagonal(7, (1, 1, 1)), ON_PAGE)),
    segment_ids=new.ones(1, 263, dtype=LONG),
    indicator=new.joined(new.constant((1, 7), 3), new.constant((1, 256), 2), dim=1)), IDEOGRAM,
    DILATED, wrap=ImageOnly)
# the pipeline's unconditional pass: a sequence of image tokens only
tiny("Ideogram4Transformer2DModel (no prompt)", TOKENS | dict(
    encoder_hidden_states=new.zeros(1, 256, 24)) | LATE | dict(position_ids=new.batched(ON_PAGE),
    segment_ids=new.ones(1, 256, dtype=LONG), indicator=new.constant((1, 256), 2)), IDEOGRAM,
    DILATED)
