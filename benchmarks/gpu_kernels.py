"""Single kernels against the hardware: ``python -m benchmarks.gpu_kernels``.

For each size the share of the roofline: the larger of arithmetic over the measured rate of a
large matrix product, and bytes over the measured bandwidth of a large copy, over the time. Beside
it the library's dense operator at the same number of sites.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sparsify.codegen import tables
from sparsify.codegen.gather_conv import gather_conv
from sparsify.codegen.geometry import Window
from sparsify.codegen.overlay_attention import key_bias, overlay_attention
from sparsify.codegen.prepack import prepack_conv
from torch import Tensor

from benchmarks.machine import environment
from sparsify.masks import centred_square
from sparsify.timing import interleaved, medians

CACHE_BYTES = 64 << 20
CONVS = [  # (channels, side of the grid, active sites)
    *((320, 128, 4096), (320, 64, 4096), (640, 64, 1024), (1280, 32, 256), (1280, 32, 64)),
    *((1280, 16, 64), (1280, 16, 16), (128, 256, 4096)),
]
ATTENTIONS = [  # (heads, head, sites, active)
    *((8, 40, 4096, 205), (10, 64, 4096, 205), (20, 64, 1024, 51), (24, 128, 4608, 717)),
]


def microseconds(run: Callable[..., Any], *operands: Tensor) -> float:
    """Median over replays of a CUDA graph, as updates are: no launch waits for the host. Copies
    of the operands take turns, so that they come from memory and not from the cache."""
    read = sum(operand.nbytes for operand in operands)
    copies = [[x.clone() for x in operands] for _ in range(max(1, 2 * CACHE_BYTES // read))]
    for _ in range(3):
        run(*copies[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            run(*copy)
    spent = interleaved({"": graph.replay}, 20, warm_up=3, device=torch.device("cuda"))
    return medians(spent)[""] * 1e3 / len(copies)


def rates(dtype: torch.dtype) -> tuple[float, float]:
    """Measured here: FLOP and bytes a microsecond."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    large = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(large)

    def copy(x: Tensor) -> Tensor:
        return torch.neg(x, out=target)  # a kernel: graphs leave copies to a slower engine

    flops = 2 * side**3 / microseconds(torch.matmul, a, b)
    return flops, 2 * large.nbytes / microseconds(copy, large)


def conv_row(channels: int, side: int, active: int, dtype: torch.dtype) -> dict[str, Any]:
    grid = (side, side)
    mask = centred_square(grid, active / side**2)
    sites = tables.active_sites(mask, True)
    window = Window(grid, grid, (3, 3), padding=(1, 1))
    kernel_map, halo_sites = (t.cuda() for t in tables.kernel_map(window, sites, sites, True))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    base = drawn(1, side * side, channels).transpose(1, 2)
    x = drawn(1, len(sites), channels).transpose(1, 2)
    dense_weight, bias = drawn(channels, channels, 3, 3), drawn(channels)
    weight = prepack_conv(dense_weight, format="plain")
    height = max(2, round(len(sites) ** 0.5))  # a picture of as many sites, for the library
    image = drawn(1, channels, height, len(sites) // height)
    image, dense_weight = (
        t.contiguous(memory_format=torch.channels_last) for t in (image, dense_weight)
    )
    library = microseconds(partial(F.conv2d, padding=1), image, dense_weight, bias)
    ours = microseconds(gather_conv, x, base, halo_sites, kernel_map, weight, bias)
    read = weight.nbytes + (x.shape[2] + len(halo_sites) + len(sites)) * channels * x.element_size()
    return {
        "kernel": f"conv {channels}, {len(sites)} of {side}x{side}",
        "microseconds": ours,
        "library": library * len(sites) / image[0, 0].numel(),
        "flops": 2 * len(sites) * 9 * channels**2,
        "bytes": read + kernel_map.nbytes,
    }


def attention_row(
    heads: int, head: int, sites: int, active: int, dtype: torch.dtype
) -> dict[str, Any]:
    where = torch.arange(active, device="cuda")

    def drawn(length: int) -> Tensor:
        return torch.randn(1, length, heads, head, device="cuda", dtype=dtype).transpose(1, 2)

    query, key, value = (drawn(active) for _ in range(3))
    base_key, base_value = drawn(sites), drawn(sites)
    bias, scale = key_bias(where, sites), head**-0.5

    def library(query: Tensor, *overlaid: Tensor) -> Tensor:
        base_key, base_value, key, value = overlaid
        keys = base_key.index_copy(2, where, key)
        values = base_value.index_copy(2, where, value)
        return F.scaled_dot_product_attention(query, keys, values)

    def ours(*operands: Tensor) -> Tensor:
        return overlay_attention(*operands, bias, scale)

    operands = (query, base_key, base_value, key, value)
    return {
        "kernel": f"attention {heads}x{head}, {active} of {sites}",
        "microseconds": microseconds(ours, *operands),
        "library": microseconds(library, *operands),
        "flops": 4 * heads * active * sites * head,
        "bytes": 2 * heads * head * (sites + 2 * active) * query.element_size(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/gpu-kernels.json"))
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    flops, bandwidth = rates(dtype)
    rows = [conv_row(*size, dtype) for size in CONVS]
    rows += [attention_row(*size, dtype) for size in ATTENTIONS]
    view = Table(title=f"{flops / 1e6:.0f} TFLOP/s, {bandwidth / 1e6:.2f} TB/s")
    for column in ("kernel", "us", "library us", "of the roofline", "bound by"):
        view.add_column(column)
    for row in rows:
        arithmetic, memory = row["flops"] / flops, row["bytes"] / bandwidth
        row["roofline"] = max(arithmetic, memory) / row["microseconds"]
        row["bound"] = "arithmetic" if arithmetic > memory else "memory"
        times = (f"{row['microseconds']:.1f}", f"{row['library']:.1f}")
        view.add_row(row["kernel"], *times, f"{row['roofline']:.0%}", row["bound"])
    Console().print(view)
    result = {**environment(), "gpu": torch.cuda.get_device_name(), "dtype": options.dtype}
    measured = {"flops_per_us": flops, "bytes_per_us": bandwidth, "rows": rows}
    options.out.write_text(json.dumps({**result, **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
