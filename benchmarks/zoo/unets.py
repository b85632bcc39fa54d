"""UNets on images."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from . import Example, tiny


@tiny("UNet2DModel")
def unet_2d() -> Example:
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        layers_per_block=1,
    )
    inputs = {"sample": torch.randn(1, 3, 32, 32), "timestep": torch.tensor(10)}
    return Example(model.eval(), inputs, edit="sample")


@tiny("UNet2DConditionModel")
def unet_2d_condition() -> Example:
    model = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    inputs = {
        "sample": torch.randn(1, 4, 32, 32),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    return Example(model.eval(), inputs, edit="sample", options={"dilate": 1})
