"""Adapters of peft on a diffusers UNet: after every call the model is captured as it then is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sparsify import BaselineError, SparseModule, sparsify

peft = pytest.importorskip("peft")

SIZE = 8


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        layers_per_block=1,
        mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        transformer_layers_per_block=1,
    ).eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, SIZE, SIZE, generator=generator)
    return latents, torch.tensor(7.0), torch.randn(1, 5, 16, generator=generator)


def square() -> Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[1:4, 2:5] = True
    return mask


def adapter(rank: int = 2) -> peft.LoraConfig:
    """With weights that do something from the start."""
    targets = ["to_q", "to_k", "to_v", "conv1"]
    return peft.LoraConfig(r=rank, lora_alpha=8, init_lora_weights=False, target_modules=targets)


Change = Callable[[UNet2DConditionModel], object]
CHANGES: dict[str, Change] = {
    "load a": lambda model: model.add_adapter(adapter(), "a"),
    "load b": lambda model: model.add_adapter(adapter(3), "b"),
    "both": lambda model: model.set_adapters(["a", "b"], [0.2, 1.0]),
    "scale": lambda model: model.set_adapters(["a"], [0.2]),
    "other": lambda model: model.set_adapters(["b"]),
    "disable": lambda model: model.disable_adapters(),
    "enable": lambda model: model.enable_adapters(),
    "fuse": lambda model: model.fuse_lora(),
    "unfuse": lambda model: model.unfuse_lora(),
    "delete b": lambda model: model.delete_adapters("b"),
    "unload": lambda model: model.unload_lora(),
}


@torch.no_grad()
def assert_as_dense(sparse: SparseModule, model: UNet2DConditionModel) -> Tensor:
    """What is recorded now, and an update of it, under policy "exact"; the dense output."""
    latents, *conditions = inputs()
    dense = model(latents, *conditions).sample
    output, baseline = sparse.record(latents, *conditions)
    torch.testing.assert_close(output.sample, dense)
    new = torch.where(square(), latents + 1, latents)
    got = sparse.update(baseline, new, *conditions, mask=square())
    torch.testing.assert_close(got.sample, model(new, *conditions).sample)
    return dense


SCENES = {
    "switched": ("load a", "load b", "both", "other", "disable", "enable", "delete b"),
    "fused": ("load a", "scale", "fuse", "unfuse", "unload"),
}


@pytest.mark.parametrize("scene", SCENES)
@torch.no_grad()
def test_adapters_are_noticed(scene: str) -> None:
    model = unet()
    sparse = sparsify(model, backend="eager", policy="exact", dense_above=1.0)
    before = assert_as_dense(sparse, model)
    for number, name in enumerate(SCENES[scene]):
        latents, *conditions = inputs()
        _, baseline = sparse.record(latents, *conditions)
        torch.manual_seed(number)
        CHANGES[name](model)
        after = model(latents, *conditions).sample
        if not torch.allclose(after, before, rtol=1e-3, atol=1e-3):
            with pytest.raises(BaselineError):
                sparse.update(baseline, latents, *conditions, mask=square())
        before = assert_as_dense(sparse, model)
