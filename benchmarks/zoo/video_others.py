"""UNets on videos, and what did not fit beside the transformers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    Cosmos3OmniTransformer,
    CosmosTransformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    I2VGenXLUNet,
    SparseControlNetModel,
    TransformerTemporalModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    WanAnimate2Transformer3DModel,
)
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, tiny
from .video_transformers import FRAMES, HUNYUAN, SIZE, text, video

UNET: dict[str, Any] = {
    "sample_size": SIZE,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
}


@tiny("UNet3DConditionModel")
def unet_3d() -> Example:
    model = UNet3DConditionModel(**UNET)
    inputs = {
        "sample": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(24),
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("UNetMotionModel")
def unet_motion() -> Example:
    """AnimateDiff."""
    model = UNetMotionModel(
        sample_size=SIZE,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        norm_num_groups=8,
        cross_attention_dim=24,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    )
    inputs = {
        "sample": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(24).repeat(FRAMES, 1, 1),
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("I2VGenXLUNet")
def i2vgen_xl() -> Example:
    model = I2VGenXLUNet(**UNET)
    inputs = {
        "sample": video(4),
        "timestep": torch.tensor([500]),
        "fps": torch.tensor([16]),
        "image_latents": video(4),
        "image_embeddings": torch.randn(1, 24),
        "encoder_hidden_states": text(24),
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("UNetSpatioTemporalConditionModel")
def svd() -> Example:
    """Stable Video Diffusion."""
    model = UNetSpatioTemporalConditionModel(
        sample_size=SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=24,
        num_attention_heads=8,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        num_frames=FRAMES,
    )
    inputs = {
        "sample": video(8).transpose(1, 2).contiguous(),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(24, 1),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("SparseControlNetModel")
def sparse_control() -> Example:
    """SparseCtrl with RGB: the condition is a video of latents with a mask of its key frames."""
    model = SparseControlNetModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=8,
        motion_num_attention_heads=2,
    )
    inputs = {
        "sample": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(24).repeat(FRAMES, 1, 1),
        "controlnet_cond": video(4),
        "conditioning_mask": (torch.arange(FRAMES) == 0)
        .float()[:, None, None]
        .expand(1, 1, -1, SIZE, SIZE),
    }
    options = {"dilate": 1, "grids": {"conditioning_mask": None}}
    return Example(randomised(model), inputs, edit="controlnet_cond", options=options)


@tiny("TransformerTemporalModel")
def temporal() -> Example:
    model = TransformerTemporalModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        norm_num_groups=8,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=FRAMES,
    )
    inputs = {"hidden_states": torch.randn(FRAMES, 16, SIZE, SIZE), "num_frames": FRAMES}
    return Example(randomised(model), inputs, edit="hidden_states")


class Omni(nn.Module):
    """Cosmos 3 on one prompt and one video."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, input_ids: Tensor, timestep: Tensor) -> Tensor:
        frames, height, width = hidden_states.shape[2:]
        grid = (frames, height // 2, width // 2)
        words, patches = len(input_ids), frames * grid[1] * grid[2]
        places = torch.arange(words, words + patches)
        moments = torch.cartesian_prod(*(torch.arange(n) for n in grid)).T + words
        out = self.transformer(
            input_ids=input_ids,
            text_indexes=torch.arange(words),
            position_ids=torch.cat([torch.arange(words).expand(3, -1), moments], dim=1),
            und_len=words,
            sequence_length=words + patches,
            vision_tokens=[hidden_states],
            vision_token_shapes=[grid],
            vision_sequence_indexes=places,
            vision_mse_loss_indexes=places,
            vision_timesteps=timestep.expand(patches),
            vision_noisy_frame_indexes=[torch.arange(frames)],
        )
        return out.sample[0]


@tiny("CosmosTransformer3DModel")
def cosmos() -> Example:
    """Without the plane of padding, which needs torchvision."""
    model = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
    )
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": text(32),
        "fps": 30,
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("Cosmos3OmniTransformer")
def cosmos_3() -> Example:
    model = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=4,
        patch_latent_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=2,
        rope_axes_dim=(4, 2, 2),
        vocab_size=32,
    )
    inputs = {
        "hidden_states": video(4),
        "input_ids": torch.arange(5),
        "timestep": torch.tensor([500.0]),
    }
    return Example(randomised(Omni(model)), inputs, edit="hidden_states")


@tiny("HunyuanVideoFramepackTransformer3DModel")
def framepack() -> Example:
    sizes = {**HUNYUAN, "num_single_layers": 1, "patch_size": 2, "pooled_projection_dim": 8}
    model = HunyuanVideoFramepackTransformer3DModel(
        **sizes, has_image_proj=True, image_proj_dim=12, has_clean_x_embedder=True
    )
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(16),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        "pooled_projections": torch.randn(1, 8),
        "image_embeds": text(12, 3),
        "indices_latents": torch.arange(7, 10),
        "guidance": torch.tensor([6000.0]),
        "latents_clean": video(4, 1),
        "indices_latents_clean": torch.tensor([0]),
        "latents_history_2x": video(4, 2),
        "indices_latents_history_2x": torch.tensor([1, 2]),
        "latents_history_4x": video(4, 4),
        "indices_latents_history_4x": torch.arange(3, 7),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


class Reference(nn.Module):
    """Wan Animate 2's pass over the video of reference, which fills its cache."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, prompt: Tensor, **inputs: Tensor) -> Tensor:
        frames, height, width = hidden_states.shape[2:]
        grid = (frames, height // 2, width // 2)
        out = self.transformer(
            hidden_states=list(hidden_states),
            encoder_hidden_states=list(prompt),
            condition_latents=[torch.zeros_like(hidden_states[0])],
            kv_cache=WanAnimate2KVCache(len(self.transformer.blocks)),
            kv_cache_mode="extract",
            seq_len=grid[0] * grid[1] * grid[2],
            offset_grid_sizes=torch.tensor([grid]),
            **inputs,
        )
        return out.sample[0][None]


@tiny("WanAnimate2Transformer3DModel")
def wan_animate_2() -> Example:
    model = WanAnimate2Transformer3DModel(
        text_len=8,
        in_dim=8,
        dim=24,
        ffn_dim=48,
        freq_dim=32,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=2,
        use_img_emb=False,
        refer_offset_w=8,
    )
    inputs = {
        "hidden_states": video(4),
        "prompt": text(16),
        "timestep": torch.tensor([1.0]),
    }
    return Example(randomised(Reference(model)), inputs, edit="hidden_states")
