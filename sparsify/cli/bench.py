"""``sparsify bench``: dense against update, on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.table import Table

from ..config import SparsifyConfig
from ..masks import centred_square
from ..timing import interleaved, medians
from ..words import size_of
from . import options
from .options import console, sparse_model

ROUNDS = 5
EXAMPLES = (
    "sparsify bench diffusers:UNet2DModel --share 0.01",
    "sparsify bench diffusers:AutoencoderKL.decode:vae/config.json",
    "sparsify bench python:mymodels:upscaler --policy exact --backend eager",
)


@torch.no_grad()
def command(
    model: options.Model,
    share: options.Share = 0.05,
    policy: options.Policy = SparsifyConfig.policy,
    dilate: options.Dilate = SparsifyConfig.dilate,
    dense_share: options.DenseShare = SparsifyConfig.dense_share,
    backend: options.Backend = "inductor",
    grid: options.Grid = None,
) -> None:
    """Time the dense model and the update of an edit, interleaved; medians are shown."""
    sparse, example = sparse_model(
        model,
        grid,
        policy=policy,
        dilate=dilate,
        dense_share=dense_share,
        backend=backend,
    )
    dense, args, kwargs = example.model, example.args, example.kwargs
    with console.status("capturing, rewriting and recording") as status:
        _, baseline = sparse.record(*args, **kwargs)
        device, size = example.args[0].device, baseline.grid
        plan = sparse.plan(centred_square(size, share))
        report = sparse.report()
        variants = {"dense": lambda: dense(*args, **kwargs)}
        if backend == "inductor":
            mode = "reduce-overhead" if device.type == "cuda" else None
            compiled = torch.compile(dense, mode=mode)
            variants["dense, compiled"] = lambda: compiled(*args, **kwargs)
        # Its cost depends on the mask alone: the recorded inputs serve as edited ones.
        variants["update"] = lambda: sparse.update(baseline, *args, mask=plan, **kwargs)
        status.update("compiling" if backend == "inductor" else "warming up")
        times = interleaved(
            variants,
            ROUNDS,
            warm_up=3 if device.type == "cuda" else 1,  # a CUDA graph is replayed from the third on
            device=device,
            tell=status.update,
        )
    console.print(_table(times, f"an edit of {share:.1%} of {size[0]}x{size[1]}, {ROUNDS} rounds"))
    console.print(
        f"MACs left: {report.share_left:.1%} of the dense model's; "
        f"baseline: {size_of(baseline.nbytes)}"
    )


def _table(times: Mapping[str, Sequence[float]], title: str) -> Table:
    table = Table(title=title)
    for column in ("", "median ms", "spread ms", "update is"):
        table.add_column(column, justify="right" if column else "left")
    medial = medians(times)
    for name, of in times.items():
        ratio = f"{medial[name] / medial['update']:.2f}x as fast" if name != "update" else ""
        table.add_row(name, f"{medial[name]:.2f}", f"{max(of) - min(of):.2f}", ratio)
    return table
