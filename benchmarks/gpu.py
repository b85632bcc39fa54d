"""Dense eager, dense compiled and update on a GPU: ``python -m benchmarks.gpu NAME ...``.

Half precision, the dense model compiled with CUDA graphs, all variants interleaved in one
process and timed by events of the device; medians are printed and written to
``docs/benchmarks/gpu-NAME.json``. ``python -m benchmarks.gpu_kernels`` shows single kernels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks.machine import environment
from benchmarks.networks import Network, full
from sparsify import sparsify
from sparsify.masks import centred_square
from sparsify.timing import interleaved, medians

SHARES = (0.012, 0.05, 0.15, 0.3, 1.0)
KNOWN = ("ddpm-church-256", "stable-diffusion-1.5", "stable-diffusion-xl")
BLOCKS = 4  # of the large transformers: all of their blocks are alike
console = Console()


def _sd3() -> Network:
    """Joint blocks of Stable Diffusion 3 medium at 1024x1024."""
    return Network(
        "sd3-blocks",
        lambda: SD3Transformer2DModel(sample_size=128, num_layers=BLOCKS, pos_embed_max_size=192),
        lambda: (
            (torch.randn(2, 16, 128, 128), torch.randn(2, 154, 4096), torch.randn(2, 2048)),
            {"timestep": torch.tensor([500, 500])},
        ),
        dilate=1,
    )


def _flux() -> Network:
    """Double and single blocks of FLUX.1 at 1024x1024: 64x64 tokens."""
    rows = torch.arange(64.0)
    places = torch.stack(
        [torch.zeros(64, 64), *torch.meshgrid(rows, rows, indexing="ij")], 2
    ).flatten(0, 1)
    return Network(
        "flux-blocks",
        lambda: FluxTransformer2DModel(
            num_layers=BLOCKS, num_single_layers=BLOCKS, guidance_embeds=True
        ),
        lambda: (
            (torch.randn(1, 4096, 64), torch.randn(1, 512, 4096), torch.randn(1, 768)),
            {
                "timestep": torch.tensor([0.5]),
                "img_ids": places,
                "txt_ids": torch.zeros(512, 3),
                "guidance": torch.tensor([3.5]),
            },
        ),
        dilate=0,
    )


def networks() -> dict[str, Network]:
    """By name."""
    known = full()
    chosen = (*(known[name] for name in KNOWN), _sd3(), _flux())
    return {network.name: network for network in chosen}


def measure(
    network: Network, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """Milliseconds of every variant, and how far the update's work is below the dense one's."""
    torch.manual_seed(0)

    def sent(tree: Any) -> Any:
        return tree_map_only(
            Tensor, lambda x: x.to(device, dtype if x.is_floating_point() else None), tree
        )

    model = network.build().eval().to(device, dtype)
    args, kwargs = sent(network.inputs())
    grids = {"hidden_states": (64, 64)} if network.name == "flux-blocks" else {}
    sparse = sparsify(model, dilate=network.dilate, grids=grids)
    _, baseline = sparse.record(*args, **kwargs)
    compiled = torch.compile(model, mode="reduce-overhead")
    variants: dict[str, Callable[[], Any]] = {
        "dense eager": lambda: model(*args, **kwargs),
        "dense compiled": lambda: compiled(*args, **kwargs),
    }
    bounds = {}
    for share in SHARES:
        plan = sparse.plan(centred_square(baseline.grid, share))
        report = sparse.report()
        bounds[share] = report.macs_dense / report.macs_update
        edited = (args[0] + torch.randn_like(args[0]), *args[1:])
        variants[f"update {share}"] = lambda edited=edited, plan=plan: sparse.update(
            baseline, *edited, mask=plan, **kwargs
        )
    times = interleaved(variants, rounds, warm_up=3, device=device)
    medial = medians(times)
    return {
        "network": network.name,
        "dtype": str(dtype).removeprefix("torch."),
        "baseline_mib": baseline.nbytes / 2**20,
        "milliseconds": medial,
        "spread": {name: max(of) - min(of) for name, of in times.items()},
        "speedup": {s: medial["dense compiled"] / medial[f"update {s}"] for s in SHARES},
        "mac_bound": bounds,
    }


def table(result: dict[str, Any]) -> Table:
    dense, compiled = (result["milliseconds"][f"dense {how}"] for how in ("eager", "compiled"))
    title = f"{result['network']}: dense {dense:.2f} ms, compiled {compiled:.2f} ms"
    view = Table(title=title)
    for column in ("edited", "update ms", "spread", "vs compiled", "MAC bound"):
        view.add_column(column, justify="right")
    for share in SHARES:
        name = f"update {share}"
        view.add_row(
            f"{share:.1%}",
            f"{result['milliseconds'][name]:.2f}",
            f"{result['spread'][name]:.2f}",
            f"{result['speedup'][share]:.2f}x",
            f"{result['mac_bound'][share]:.2f}x",
        )
    return view


def main() -> None:
    known = networks()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(known), metavar="NAME")
    parser.add_argument("--dtype", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"{unknown.pop()} is not one of {', '.join(known)}")
    torch.set_grad_enabled(False)
    options.out.mkdir(parents=True, exist_ok=True)
    device, gpu = torch.device("cuda"), torch.cuda.get_device_name()
    for name in options.names:
        console.log(name)
        measured = measure(known[name], device, getattr(torch, options.dtype), options.rounds)
        result = {**environment(), "gpu": gpu, **measured}
        (options.out / f"gpu-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        console.print(table(result))


if __name__ == "__main__":
    main()
