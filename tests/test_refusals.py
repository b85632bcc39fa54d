"""What cannot be captured is refused in words that say what to undo."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers import hooks
from torch import Tensor, nn

from sparsify import CaptureError, sparsify
from tests.nets.base import C, conv

X = torch.zeros(1, C, 8, 12)


def refused(model: nn.Module, *inputs: Any) -> str:
    with pytest.raises(CaptureError) as raised:
        sparsify(model, backend="eager").record(*(inputs or (X,)))
    assert "control flow" not in str(raised.value)
    return str(raised.value)


class Norms(nn.Module):
    """As pix2pix's: batch norms, and dropout."""

    def __init__(self, track: bool = True) -> None:
        super().__init__()
        self.conv = conv()
        self.norm = nn.BatchNorm2d(C, track_running_stats=track)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x)))


def test_norms_in_training_mode() -> None:
    text = refused(Norms().train())
    assert text.startswith("norm (BatchNorm2d)") and "running_mean = running_var = None" in text
    assert (
        refused(nn.Sequential(conv())) == "the model is in training mode: call model.eval() first"
    )
    model = nn.Sequential(Norms()).eval()
    model[0].drop.train()
    assert refused(model).startswith("0.drop is in training mode")


@pytest.mark.parametrize("way", ["as advised", "track_running_stats=False"])
@torch.no_grad()
def test_the_statistics_of_the_input_at_test_time(way: str) -> None:
    model, x = Norms(way == "as advised").eval(), torch.randn(1, C, 8, 12)
    model.norm.running_mean = model.norm.running_var = None
    sparse = sparsify(model, backend="eager", policy="exact")
    output, baseline = sparse.record(x)
    torch.testing.assert_close(output, nn.functional.instance_norm(model.conv(x)))
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[2:4, 3:6] = True
    edited = torch.where(mask, x + 1, x)
    got = sparse.update(baseline, edited, mask=mask)
    torch.testing.assert_close(got, model(edited), rtol=1e-4, atol=1e-5)


def test_inputs_of_another_dtype() -> None:
    text = refused(nn.Sequential(conv()).eval(), X.half())
    assert "torch.float16 but the parameters of Sequential are torch.float32" in text


def test_scripted_models() -> None:
    model = nn.Sequential(conv()).eval()
    for scripted in (torch.jit.trace(model, X), torch.jit.script(model)):
        with pytest.raises(CaptureError, match=r"torch\.jit"):
            sparsify(scripted)


def test_model_offload() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(conv()).eval()
    _, hook = accelerate.cpu_offload_with_hook(model, execution_device="cpu")
    assert "enable_model_cpu_offload" in refused(model) and "remove_all_hooks" in refused(model)
    hook.remove()
    sparsify(model, backend="eager").record(X)


@pytest.mark.parametrize("whole", [False, True], ids=["beside another hook", "alone"])
def test_sequential_offload(whole: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(conv()).eval()
    if not whole:
        accelerate.hooks.add_hook_to_module(model[0], accelerate.hooks.ModelHook(), append=True)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert "enable_sequential_cpu_offload" in refused(model)
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    sparsify(model, backend="eager").record(X)


def test_models_that_only_align_devices_are_captured() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.dispatch_model(nn.Sequential(conv()).eval(), {"": "cpu"}, force_hooks=True)
    output, _ = sparsify(model, backend="eager").record(X)
    torch.testing.assert_close(output, model(X))


def flux() -> Any:
    """A tiny one, of diffusers."""
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    ).eval()  # fmt: skip


FLUX_INPUTS = {
    "hidden_states": torch.zeros(1, 16, 4),
    "encoder_hidden_states": torch.zeros(1, 3, 8),
    "pooled_projections": torch.zeros(1, 8),
    "timestep": torch.ones(1),
    "img_ids": torch.zeros(16, 3),
    "txt_ids": torch.zeros(3, 3),
    "return_dict": False,
}


def record_flux(model: nn.Module) -> None:
    sparsify(model, backend="eager", grids={"hidden_states": (4, 4)}).record(**FLUX_INPUTS)


def refused_flux(model: nn.Module) -> str:
    with pytest.raises(CaptureError) as raised:
        record_flux(model)
    return str(raised.value)


CACHES = [
    hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 300
    ),
    hooks.TaylorSeerCacheConfig(),
    hooks.FirstBlockCacheConfig(),
]


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: type(cache).__name__)
def test_caches_of_diffusers(cache: Any) -> None:
    model = flux()
    model.enable_cache(cache)
    text = refused_flux(model)
    assert "keeps values from call to call" in text and "model.disable_cache()" in text
    model.disable_cache()
    record_flux(model)


def test_layerwise_casting() -> None:
    model = flux()
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    text = refused_flux(model)
    assert "enable_layerwise_casting" in text and "load the model again" in text


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload(level: str) -> None:
    model = flux()
    hooks.apply_group_offloading(
        model, torch.device("cpu"), offload_type=level, num_blocks_per_group=1
    )
    assert "enable_group_offload" in refused_flux(model)
    _remove(model, refused_flux(model))
    record_flux(model)


def _remove(model: nn.Module, text: str) -> None:
    """As the message says."""
    (name,) = re.findall(r'remove_hook\("(\w+)"\)', text)
    hooks.HookRegistry.check_if_exists_or_initialize(model).remove_hook(name)
