"""Videos of two latent frames: LTX, and Wan 2.2 with a transformer for each half of the steps."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from tests.pipelines.parts import GUIDED, PADDED, SIZE, Pipe, case, ready


def ltx() -> Pipe:
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        patch_size=2,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return ready(LTXPipeline(scheduler, vae, None, None, transformer))


def wan_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        rope_max_seq_len=32,
    )


def wan() -> Pipe:
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.5, 0.8, 1.2],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    high, low = wan_transformer(), wan_transformer()
    return ready(WanPipeline(None, None, vae, scheduler, high, low, boundary_ratio=0.875))


CASES = {
    "ltx": case(ltx, **SIZE, **GUIDED, **PADDED, num_frames=3),
    "wan": case(wan, **SIZE, **GUIDED, num_frames=3),
}
