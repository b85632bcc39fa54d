"""Encoder propagation in networks of real size: one key step and one reuse step of each.

Weights are random: a step takes as long with any. A whole run follows from its key steps.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch._inductor import config as inductor
from torch.utils._pytree import tree_leaves

from benchmarks.networks import Network, full, small
from benchmarks.reuse_runs import Settings, Times, Work, seconds, whole
from sparsify import Schedule, sparsify

STEPS = 50
LISTS = {"deepfloyd-if-i-m": ("50ls", "s2"), "deepfloyd-if-i-l": ("50ls", "s2")}
"""Key steps by their names in the code of Faster Diffusion, which for pixel models has "s2"; of
other networks "50ls"."""


def propagated(name: str, settings: Settings) -> dict[str, Any]:
    """Everything that the JSON says of one network."""
    torch.manual_seed(0)
    network = networks(settings.narrow)[name]
    model = network.build().eval()
    args, kwargs = network.inputs()
    sparse = sparsify(model, dilate=network.dilate, backend=settings.backend)
    call = sparse._engine.bind(args, kwargs)
    program = sparse._engine.program(call, "encoder")
    dense: Callable[..., Any] = torch.compile(model) if settings.is_compiled else model
    with inductor.patch(freezing=True):
        want = tree_leaves(dense(*args, **kwargs))[0]
    key, values = program.step(call, None)
    reuse, _ = program.step(call, values)  # of this very step: so it gives the same
    errors = [tree_leaves(output)[0] - want for output in (key, reuse)]
    runs = {
        "dense": lambda: dense(*args, **kwargs),
        "key": lambda: program.step(call, None),
        "reuse": lambda: program.step(call, values),
    }
    times, work = seconds(runs, settings.rounds), Work.of(program)
    return {
        "network": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "items": len(args[0]),
        "macs": asdict(work),
        "reused_mib": sum(value.nbytes for value in values) / 2**20,
        "error": float(max(error.abs().max() for error in errors) / want.abs().max()),
        "times": times,
        "schedules": [_run(work, times, variant) for variant in LISTS.get(name, ("50ls",))],
        "peak_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _run(work: Work, times: Times, variant: str) -> dict[str, Any]:
    """A whole run, from its single steps."""
    schedule = Schedule.published("faster-diffusion", STEPS, variant=variant)
    dense, key, reuse = (times[name]["median_s"] for name in ("dense", "key", "reuse"))
    bound, speedup = 1 / work.share(schedule), STEPS * dense / whole(schedule, key, reuse)
    return {
        "variant": variant,
        "keys": schedule.keys,
        "mac_bound": bound,
        "speedup": speedup,
        "of_bound": speedup / bound,
    }


def networks(narrow: bool) -> dict[str, Network]:
    """By name."""
    sizes: list[tuple[tuple[int, ...], int, int, int]]
    if narrow:
        known, sizes = small(), [((32, 64), 16, 1, 64)] * 2
    else:
        known = full()
        sizes = [(tuple(width * n for n in (1, 2, 3, 4)), 64, 3, 4096) for width in (192, 320)]
    pixels = (_deepfloyd(name, *size) for name, size in zip(LISTS, sizes, strict=True))
    return known | {network.name: network for network in pixels}


def _deepfloyd(name: str, widths: tuple[int, ...], size: int, layers: int, words: int) -> Network:
    """The first stage of DeepFloyd IF, with the two items of guidance."""
    inner = len(widths) - 1
    config: dict[str, Any] = {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * inner),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * inner, "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
        "attention_head_dim": min(64, widths[0]),
        "cross_attention_dim": widths[-1],
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": words,
        "addition_embed_type": "text",
    }

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.randn(2, 3, size, size), torch.tensor(10), torch.randn(2, 77, words)), {}

    return Network(name, lambda: UNet2DConditionModel(**config), inputs)
