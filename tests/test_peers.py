"""Runs by a schedule equal those of the packages whose methods the schedules are.

DeepCache skips layers of a UNet, cache-dit blocks of a transformer, each by its own wrappers around
the model. Here both sample with the same weights, in double precision.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.utils.logging  # noqa: F401 (it sets what cache-dit sets too)
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from hypothesis import settings
from sparsify.passes.macs import macs_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsify import Schedule, sparsify

STEPS = 8
IS_DEEP = settings.default.max_examples > 100
BRANCHES = range(6) if IS_DEEP else (0, 4)
"""Each takes a capture; `make test-deep` has all."""


def assert_same(ours: Tensor, theirs: Tensor, full: Tensor) -> None:
    """Steps that reuse a part compute the same, and something else than the whole model."""
    assert (full - theirs).norm() > 1e-3 * full.norm()
    assert (ours - theirs).norm() < 1e-11 * theirs.norm()


# -- DeepCache -------------------------------------------------------------------------------------


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 16),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        .double()
        .eval()
    )


def scheduler() -> DDIMScheduler:
    made = DDIMScheduler(clip_sample=False)
    made.set_timesteps(STEPS)
    return made


def unet_inputs(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Guidance has two items."""
    words = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).double()
    return torch.cat([x, x]), t, words


def guided(net: Any, steps: DDIMScheduler) -> Tensor:
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    for t in steps.timesteps:
        none, words = net(*unet_inputs(x, t), return_dict=False)[0].chunk(2)
        x = steps.step(none + 3 * (words - none), t, x).prev_sample
    return x


def deepcache(branch: int, interval: int) -> SimpleNamespace:
    """A model that it wrapped, with its scheduler, as in a pipeline."""
    pipe = SimpleNamespace(unet=unet(), scheduler=scheduler())
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return pipe


@pytest.fixture(scope="module")
def sparse_unet() -> Any:
    return sparsify(unet(), backend="eager")


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_deepcache_computes_the_same(sparse_unet: Any, branch: int) -> None:
    full = guided(unet(), scheduler())
    for interval in (2, 3, 5):
        pipe = deepcache(branch, interval)
        schedule = Schedule.published("deepcache", STEPS, branch=branch, interval=interval)
        with sparse_unet.sampling(schedule):
            ours = guided(sparse_unet, scheduler())
        assert_same(ours, guided(pipe.unet, pipe.scheduler), full)


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_deepcache_has_the_same_work(sparse_unet: Any, branch: int) -> None:
    """Convolutions, linear layers and the two products of attention, which is told to make them."""
    pipe, theirs, x = deepcache(branch, 2), [], torch.randn(1, 4, 16, 16).double()
    for t in pipe.scheduler.timesteps[:2]:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            pipe.unet(*unet_inputs(x, t), return_dict=False)
        theirs.append(counter.get_total_flops() // 2)
    engine = sparse_unet._engine
    call = engine.bind(unet_inputs(x, t), {"return_dict": False})
    program = engine.program(call, f"deep.{branch}")
    graphs = [program.graphs[name].graph for name in ("key", "reuse")]
    assert [macs_of(graph) for graph in graphs] == theirs
    assert theirs[1] < theirs[0]


# -- cache-dit -------------------------------------------------------------------------------------

CACHED = {
    1: ("transformer_blocks.[1-9]*", "single_transformer_blocks.*"),
    2: ("single_transformer_blocks.*",),
}
"""By the number of first blocks that it computes at every step: the others."""


@pytest.fixture(scope="module")
def cache_dit() -> Iterator[Any]:
    """Imported without what it leaves behind: it sets methods of loggers, and a variable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIT_LOG_LEVEL", "ERROR")
        patch.setenv("FFPA_CUDA_ALLOW_SMALL_D", "1")
        for name in ("info_once", "warning_once"):
            patch.setattr(logging.Logger, name, getattr(logging.Logger, name))
        yield pytest.importorskip("cache_dit")


@pytest.fixture(scope="module")
def flux() -> FluxTransformer2DModel:
    """All its weights are drawn, so that no gate is zero."""
    torch.manual_seed(0)
    net = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sparse_flux(flux: FluxTransformer2DModel) -> Any:
    return sparsify(flux, backend="eager", grids={"hidden_states": (8, 8)})


def flowed(net: Any) -> Tensor:
    """Euler steps along the flow."""
    generator = torch.Generator().manual_seed(0)
    x, words, pooled = (
        torch.randn(1, *shape, generator=generator).double() for shape in ((64, 4), (5, 12), (10,))
    )
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(8.0)).double()
    known = {"img_ids": places, "txt_ids": torch.zeros(5, 3).double(), "return_dict": False}
    for step in range(STEPS):
        t = torch.tensor([1 - step / STEPS]).double()
        x = x - net(x, words, pooled, t, **known)[0] / STEPS
    return x


@pytest.mark.parametrize(
    ("policy", "order", "first"),
    [("fast", 0, 1), ("fast", 1, 1), ("ultra", 1, 1), ("medium", 0, 2), ("fast", 1, 2)],
)
def test_cache_dit_computes_the_same(
    cache_dit: Any, flux: Any, sparse_flux: Any, policy: str, order: int, first: int
) -> None:
    """By its own masks, "static": no threshold decides. It counts the steps of a new model."""
    theirs = copy.deepcopy(flux)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=first,
        Bn_compute_blocks=0,
        max_warmup_steps=0,
        steps_computation_mask=cache_dit.steps_mask(mask_policy=policy, total_steps=STEPS),
        steps_computation_policy="static",
    )
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if order else None
    cache_dit.enable_cache(theirs, cache_config=config, calibrator_config=calibrator)
    schedule = Schedule.published("cache-dit", STEPS, policy=policy, order=order)
    with sparse_flux.sampling(replace(schedule, reuse=CACHED[first])):
        ours = flowed(sparse_flux)
    assert_same(ours, flowed(theirs), flowed(flux))
