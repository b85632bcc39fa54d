"""Single kernels against the hardware: ``python -m benchmarks.gpu_kernels``.

For each size the share of the roofline: the larger of arithmetic over the measured rate of a
large matrix product, and bytes over the measured bandwidth of a large copy, over the time. Beside
it the library's dense operator at the same number of sites. Then convolutions and linear layers
with weights that keep 2 of 4 inputs, in each format that runs here, against the dense weight.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sparsify.codegen import products, tables
from sparsify.codegen.gather_conv import gather_conv
from sparsify.codegen.geometry import Window
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.overlay_attention import key_bias, overlay_attention
from sparsify.codegen.prepack import PLAIN, fuses, prepack_conv, prepack_linear, runs
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
LINEARS = [(320, 4096), (640, 1024), (1280, 256), (1280, 64), (3072, 717)]  # (channels, rows)
FORMATS = {PLAIN: 1, "tiles 16:2:4": 16, "tiles 64:2:4": 64, "2:4": 1}
"""Of a weight, and how many of its outputs share their inputs."""


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


def conv_operands(channels: int, side: int, active: int, dtype: torch.dtype) -> list[Tensor]:
    """x, baseline, halo_sites, kernel_map of a 3x3 convolution."""
    grid = (side, side)
    sites = tables.active_sites(centred_square(grid, active / side**2), True)
    window = Window(grid, grid, (3, 3), padding=(1, 1))
    kernel_map, halo_sites = (t.cuda() for t in tables.kernel_map(window, sites, sites, True))
    base = drawn(1, side * side, channels, dtype=dtype).transpose(1, 2)
    x = drawn(1, len(sites), channels, dtype=dtype).transpose(1, 2)
    return [x, base, halo_sites, kernel_map]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def conv_row(channels: int, side: int, active: int, dtype: torch.dtype) -> dict[str, Any]:
    x, _, halo_sites, kernel_map = operands = conv_operands(channels, side, active, dtype)
    dense_weight = drawn(channels, channels, 3, 3, dtype=dtype)
    bias, sites = drawn(channels, dtype=dtype), x.shape[2]
    weight = prepack_conv(dense_weight, format=PLAIN)
    height = max(2, round(sites**0.5))  # a picture of as many sites, for the library
    image = drawn(1, channels, height, sites // height, dtype=dtype)
    image, dense_weight = (
        t.contiguous(memory_format=torch.channels_last) for t in (image, dense_weight)
    )
    library = microseconds(partial(F.conv2d, padding=1), image, dense_weight, bias)
    ours = microseconds(partial(gather_conv, format=PLAIN), *operands, weight, bias)
    read = weight.nbytes + (sites + len(halo_sites) + sites) * channels * x.element_size()
    return {
        "kernel": f"conv {channels}, {sites} of {side}x{side}",
        "microseconds": ours,
        "library": library * sites / image[0, 0].numel(),
        "flops": 2 * sites * 9 * channels**2,
        "bytes": read + kernel_map.nbytes,
    }


def sparse_conv_row(channels: int, side: int, active: int, dtype: torch.dtype) -> dict[str, Any]:
    """Microseconds of a 3x3 convolution by format, with the gather of what it reads."""
    operands = conv_operands(channels, side, active, dtype)
    bias = drawn(channels, dtype=dtype)

    def apart(x: Tensor, base: Tensor, halo_sites: Tensor, *others: Tensor, format: str) -> Tensor:
        halo = base.index_select(2, halo_sites)
        return products.gather_conv(x, halo, *others, format=format)

    row: dict[str, Any] = {"kernel": f"conv {channels}, {operands[0].shape[2]} of {side}x{side}"}
    for format, weight in sparse_weights(channels, 3, dtype):
        run = partial(gather_conv if fuses(format) else apart, format=format)
        row[format] = microseconds(run, *operands, prepack_conv(weight, format=format), bias)
    return row


def sparse_linear_row(channels: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Microseconds of a linear layer by format; the plain one is the library's."""
    x, bias = drawn(1, rows, channels, dtype=dtype), drawn(channels, dtype=dtype)
    row: dict[str, Any] = {"kernel": f"linear {channels}, {rows} rows"}
    for format, weight in sparse_weights(channels, 1, dtype):
        run = partial(products.linear, format=format)
        row[format] = microseconds(run, x, prepack_linear(weight, format=format), bias)
    return row


def sparse_weights(channels: int, side: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """For each format that runs here a weight [channels, channels, side, side] that keeps 2 of 4,
    or all if it is the plain one."""
    weight = drawn(channels, channels, side, side, dtype=dtype)
    for format, v in FORMATS.items():
        if runs(format, weight.device, dtype) and channels % v == 0:
            yield format, weight if format == PLAIN else nm_masked(weight, 2, 4, v)


def attention_row(
    heads: int, head: int, sites: int, active: int, dtype: torch.dtype
) -> dict[str, Any]:
    where = torch.arange(active, device="cuda")

    def tokens(length: int) -> Tensor:
        return drawn(1, length, heads, head, dtype=dtype).transpose(1, 2)

    query, key, value = (tokens(active) for _ in range(3))
    base_key, base_value = tokens(sites), tokens(sites)
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


def sparse_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="microseconds with weights that keep 2 of 4 inputs")
    for column in ("kernel", *FORMATS):
        table.add_column(column)
    for row in rows:
        times = (f"{row[format]:.1f}" if format in row else "" for format in FORMATS)
        table.add_row(row["kernel"], *times)
    return table


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
    sparse = [sparse_conv_row(*size, dtype) for size in CONVS]
    sparse += [sparse_linear_row(*size, dtype) for size in LINEARS]
    Console().print(sparse_table(sparse))
    result = {**environment(), "gpu": torch.cuda.get_device_name(), "dtype": options.dtype}
    measured = {"flops_per_us": flops, "bytes_per_us": bandwidth, "rows": rows}
    measured["sparse"] = sparse
    options.out.write_text(json.dumps({**result, **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
