"""The networks that must work, built from their published configurations with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from benchmarks.spade import SpadeGenerator, folded
from examples.realesrgan import RRDBNet
from examples.terrain import TerrainUNet, load_terrain
from sparsify.cli.from_diffusers import Decoder

DDPM_CHURCH_256: dict[str, Any] = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
STABLE_DIFFUSION_15: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
STABLE_DIFFUSION_XL: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
DIT_XL_2: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


@dataclass(frozen=True)
class Network:
    """A model, the inputs of one call, and the pixels by which to dilate edits of its input.
    ``trained`` builds it with published weights, where they can be had."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    dilate: int = 5
    trained: Callable[[], nn.Module] | None = None


def _narrow(config: dict[str, Any], widths: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    return {**config, "block_out_channels": widths, **changes}


def _church(width: int, size: int) -> Network:
    widths = tuple(width * m for m in (1, 1, 2, 2, 4, 4))
    config = _narrow(DDPM_CHURCH_256, widths, sample_size=size)
    return Network(
        "ddpm-church-256",
        lambda: UNet2DModel(**config),
        lambda: ((torch.randn(1, 3, size, size), torch.tensor(10)), {}),
    )


def _sd15(width: int, size: int, context: int) -> Network:
    """With the two items of classifier-free guidance."""
    widths = tuple(width * m for m in (1, 2, 4, 4))
    config = _narrow(STABLE_DIFFUSION_15, widths, cross_attention_dim=context, sample_size=size)
    return Network(
        "stable-diffusion-1.5",
        lambda: UNet2DConditionModel(**config),
        lambda: (
            (torch.randn(2, 4, size, size), torch.tensor(10), torch.randn(2, 77, context)),
            {},
        ),
        dilate=1,
    )


def _sdxl(width: int, size: int, context: int, layers: list[int]) -> Network:
    widths, heads = (
        tuple(width * m for m in (1, 2, 4)),
        [max(1, width // 64 * m) for m in (1, 2, 4)],
    )
    config = _narrow(
        STABLE_DIFFUSION_XL,
        widths,
        cross_attention_dim=context,
        attention_head_dim=heads,
        sample_size=size,
        transformer_layers_per_block=layers,
    )
    extra = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.randn(1, 6)}
    return Network(
        "stable-diffusion-xl",
        lambda: UNet2DConditionModel(**config),
        lambda: (
            (torch.randn(1, 4, size, size), torch.tensor(10), torch.randn(1, 77, context)),
            {"added_cond_kwargs": extra},
        ),
        dilate=1,
    )


def _decoder(width: int, size: int) -> Network:
    config = _narrow(VAE, tuple(width * m for m in (1, 2, 4, 4)))
    return Network(
        "autoencoder-kl-decoder",
        lambda: Decoder(AutoencoderKL(**config)),
        lambda: ((torch.randn(1, 4, size, size),), {}),
        dilate=1,
    )


def _terrain(size: int) -> Network:
    return Network(
        "terrain",
        TerrainUNet,
        lambda: ((torch.randn(1, 1, size, size), torch.zeros(1), torch.full((1,), 0.5)), {}),
        trained=load_terrain,
    )


def _gaugan(width: int, hidden: int, height: int) -> Network:
    """Cityscapes: 35 classes and the edges between instances."""

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        classes = torch.randint(35, (1, 1, height, 2 * height))
        labels = torch.zeros(1, 36, height, 2 * height).scatter(1, classes, 1.0)
        return (labels,), {}

    return Network(
        "gaugan-256x512", lambda: folded(SpadeGenerator(width=width, hidden=hidden)), inputs
    )


def _dit(heads: int, layers: int, size: int) -> Network:
    config = DIT_XL_2 | {"num_attention_heads": heads, "num_layers": layers, "sample_size": size}
    return Network(
        "dit-xl-2-256",
        lambda: DiTTransformer2DModel(**config),
        lambda: (
            (torch.randn(1, 4, size, size), torch.tensor([10])),
            {"class_labels": torch.tensor([207])},
        ),
        dilate=1,
    )


def _rrdb(blocks: int, size: int) -> Network:
    return Network(
        "real-esrgan-x4",
        lambda: RRDBNet(nb=blocks),
        lambda: ((torch.rand(1, 3, size, size),), {}),
    )


def full() -> dict[str, Network]:
    """The published sizes."""
    return _by_name(
        _church(128, 256),
        _sd15(320, 64, 768),
        _sdxl(320, 128, 2048, [1, 2, 10]),
        _decoder(128, 64),
        _terrain(128),
        _rrdb(23, 64),
        _gaugan(64, 128, 256),
        _dit(16, 28, 32),
    )


def small() -> dict[str, Network]:
    """The same graphs, narrow and low: for tests of correctness."""
    return _by_name(
        _church(32, 64),
        _sd15(32, 32, 64),
        _sdxl(64, 32, 64, [1, 1, 2]),
        _decoder(32, 8),
        _terrain(32),
        _rrdb(1, 16),
        _gaugan(4, 8, 64),
        _dit(2, 2, 16),
    )


def _by_name(*networks: Network) -> dict[str, Network]:
    return {network.name: network for network in networks}
