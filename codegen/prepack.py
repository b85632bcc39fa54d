"""Weights in the format that the kernel of a product reads: stored once, read by every update."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph

from .gather_matmul.fine import loads_bound as loads_bound
from .gather_matmul.formats import FINE as FINE
from .gather_matmul.formats import LISTED as LISTED
from .gather_matmul.formats import PLAIN as PLAIN
from .gather_matmul.formats import SEMI_STRUCTURED as SEMI_STRUCTURED
from .gather_matmul.formats import SITES as SITES
from .gather_matmul.formats import SPARSE as SPARSE
from .gather_matmul.formats import TILES as TILES
from .gather_matmul.formats import named
from .gather_matmul.tiles import tile_columns as tile_columns


def prepack_linear(weight: Tensor, *, format: str) -> Tensor:
    """Linear or 1x1 convolution weight [C_out, C_in, 1...] for :func:`.products.linear`; plain, it
    is the library's [C_out, C_in]."""
    matrix = weight.flatten(1)
    return matrix if format == PLAIN else named(format).pack(matrix.t().unsqueeze(0))


def prepack_conv(
    weight: Tensor, groups: int = 1, transposed: bool = False, *, format: str
) -> Tensor:
    """Convolution weight for :func:`.products.gather_conv`.

    ``weight`` is [C_out, C_in/groups, kh, kw], or [C_in, C_out/groups, kh, kw] if transposed.
    Plain, the result is [groups, taps * C_in/groups, C_out/groups], taps slowest.
    """
    split: Tensor = weight.unflatten(0, (groups, -1))  # g, co, ci, kh, kw
    if transposed:
        split = split.transpose(1, 2)
    ordered = split.permute(0, 3, 4, 2, 1)
    return named(format).pack(ordered.reshape(groups, -1, ordered.shape[-1]).contiguous())


PREPACKS = (prepack_linear, prepack_conv)
"""What reads their results takes the same ``format``."""


def fits(format: str, device: torch.device, dtype: torch.dtype, width: int, groups: int) -> bool:
    """Can a weight like this be stored in ``format`` and be computed with here?"""
    own = named(format)
    shape_fits = width % (groups * own.multiple) == 0 and (groups == 1 or own.groups)
    return shape_fits and own.runs(device, dtype)


def runs(format: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Is there a kernel for this device and dtype here?"""
    return named(format).runs(device, dtype)


def fuses(format: str) -> bool:
    """Does the convolution with what follows it, :mod:`.gather_conv`, read it on CUDA?"""
    return named(format).parts is not None


def make_plain(graph: Graph) -> None:
    """Every weight that ``graph`` prepacks or reads is plain, for a process with torch alone.

    Functions that take a format take it by name; a model's own operators are no functions.
    """
    for node in graph.nodes:
        if "format" in node.kwargs and not isinstance(node.target, torch._ops.OpOverload):
            node.update_kwarg("format", PLAIN)
