"""Transformers on videos: the best known."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    ChronoEditTransformer3DModel,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    LatteTransformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, tiny

FRAMES, SIZE = 3, 16


class Packed(nn.Module):
    """A transformer on tokens [N, T*H*W, C], called with a video [N, C, T, H, W] as LTX's
    pipeline does."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
        frames, height, width = hidden_states.shape[2:]
        tokens = hidden_states.flatten(2).transpose(1, 2)
        first, *others = self.transformer(
            hidden_states=tokens,
            num_frames=frames,
            height=height,
            width=width,
            return_dict=False,
            **inputs,
        )
        return first.transpose(1, 2).unflatten(2, (frames, height, width)), *others


def video(channels: int, frames: int = FRAMES) -> Tensor:
    """Latents of a video, [N, C, T, H, W]."""
    return torch.randn(1, channels, frames, SIZE, SIZE)


def text(width: int, length: int = 6) -> Tensor:
    """Embeddings of a prompt."""
    return torch.randn(1, length, width)


def rotary(head_dim: int) -> tuple[Tensor, Tensor]:
    """Angles of CogVideoX for patches of 2, as its pipeline makes them."""
    side = SIZE // 2
    return get_3d_rotary_pos_embed(
        embed_dim=head_dim,
        crops_coords=((0, 0), (side, side)),
        grid_size=(side, side),
        temporal_size=FRAMES,
    )


COGVIDEOX: dict[str, Any] = {
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "num_layers": 2,
    "sample_width": SIZE,
    "sample_height": SIZE,
    "sample_frames": 9,
    "max_text_seq_length": 6,
    "use_rotary_positional_embeddings": True,
}


def cogvideox_inputs() -> dict[str, Any]:
    return {
        "hidden_states": video(4).transpose(1, 2).contiguous(),
        "encoder_hidden_states": text(24),
        "timestep": torch.tensor([500]),
        "image_rotary_emb": rotary(16),
    }


@tiny("CogVideoXTransformer3DModel")
def cogvideox() -> Example:
    """CogVideoX-5B's way: rotary positions, the prompt before the video in one sequence."""
    model = CogVideoXTransformer3DModel(num_attention_heads=2, **COGVIDEOX)
    inputs = cogvideox_inputs()
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("ConsisIDTransformer3DModel")
def consisid() -> Example:
    model = ConsisIDTransformer3DModel(
        **COGVIDEOX,
        num_attention_heads=3,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=8,
        LFE_vit_dim=8,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=5,
    )
    inputs = {
        **cogvideox_inputs(),
        "id_cond": torch.randn(1, 8),
        "id_vit_hidden": [text(8, 4) for _ in range(5)],
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("LatteTransformer3DModel")
def latte() -> Example:
    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=SIZE,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=24,
        video_length=FRAMES,
    )
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(24),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("AllegroTransformer3DModel")
def allegro() -> Example:
    model = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=48,
        sample_height=SIZE,
        sample_width=SIZE,
        sample_frames=FRAMES,
        caption_channels=24,
    )
    side = SIZE // 2
    *angles, times, rows, columns = get_3d_rotary_pos_embed_allegro(
        embed_dim=24,
        crops_coords=((0, 0), (side, side)),
        grid_size=(side, side),
        temporal_size=FRAMES,
        interpolation_scale=(2.2, 2.0, 2.0),
    )
    places = torch.cartesian_prod(times.long(), rows.long(), columns.long()).T[:, None]
    inputs = {
        "hidden_states": video(4),
        "encoder_hidden_states": text(24),
        "timestep": torch.tensor([500]),
        "attention_mask": torch.ones(1, FRAMES, SIZE, SIZE),
        "encoder_attention_mask": torch.ones(1, 6),
        "image_rotary_emb": (tuple(angles), tuple(places.contiguous())),
    }
    options = {"grids": {"attention_mask": None}}  # no edit changes what is padding
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


@tiny("MochiTransformer3DModel")
def mochi() -> Example:
    model = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=6,
    )
    inputs = {
        "hidden_states": video(4),
        "encoder_hidden_states": text(16),
        "timestep": torch.tensor([500]),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("LTXVideoTransformer3DModel")
def ltx() -> Example:
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=24,
    )
    inputs = {
        "hidden_states": video(8),
        "encoder_hidden_states": text(24),
        "timestep": torch.tensor([500]),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
    }
    return Example(randomised(Packed(model)), inputs, edit="hidden_states")


LTX2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 24,
    "rope_double_precision": False,
}


@tiny("LTX2VideoTransformer3DModel")
def ltx2() -> Example:
    model = LTX2VideoTransformer3DModel(**LTX2)
    inputs = {
        "hidden_states": video(4),
        "audio_hidden_states": text(4, 9),
        "encoder_hidden_states": text(24),
        "audio_encoder_hidden_states": text(24),
        "timestep": torch.tensor([500.0]),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        "audio_num_frames": 9,
    }
    return Example(randomised(Packed(model)), inputs, edit="hidden_states")


WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def wan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(16),
    }


@tiny("WanTransformer3DModel")
def wan() -> Example:
    model = WanTransformer3DModel(**WAN)
    return Example(randomised(model), wan_inputs(), edit="hidden_states")


@tiny("WanVACETransformer3DModel")
def wan_vace() -> Example:
    model = WanVACETransformer3DModel(**WAN, vace_layers=[0, 1], vace_in_channels=12)
    inputs = {**wan_inputs(), "control_hidden_states": video(12)}
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("SkyReelsV2Transformer3DModel")
def skyreels() -> Example:
    model = SkyReelsV2Transformer3DModel(**WAN)
    return Example(randomised(model), wan_inputs(), edit="hidden_states")


@tiny("ChronoEditTransformer3DModel")
def chronoedit() -> Example:
    """The frames left by ChronoEdit's last steps: first and last."""
    model = ChronoEditTransformer3DModel(**WAN, image_dim=8, added_kv_proj_dim=24)
    inputs = {
        **wan_inputs(),
        "hidden_states": video(4, 2),
        "encoder_hidden_states_image": text(8, 5),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (2, 4, 4),
}


@tiny("HunyuanVideoTransformer3DModel")
def hunyuan() -> Example:
    sizes = {**HUNYUAN, "num_single_layers": 1, "patch_size": 2, "pooled_projection_dim": 8}
    model = HunyuanVideoTransformer3DModel(**sizes)
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(16),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.tensor([6000.0]),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("HunyuanVideo15Transformer3DModel")
def hunyuan_15() -> Example:
    model = HunyuanVideo15Transformer3DModel(
        **HUNYUAN, text_embed_2_dim=8, image_embed_dim=12, target_size=SIZE
    )
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": text(16),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        "encoder_hidden_states_2": text(8, 4),
        "encoder_attention_mask_2": torch.ones(1, 4, dtype=torch.bool),
        "image_embeds": text(12, 3),
    }
    return Example(randomised(model), inputs, edit="hidden_states")
