"""Networks that the library was not prepared for: what people write, in few lines each.

A network maps ``x`` [N, 8, H, W]; :func:`pictures` makes an example of some on any grid whose
sides are multiples of 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.agreement import Example, Grid
from tests.nets.attention import Attention, Axial, FewerKeys, Latents, Rotary, Swin, Windows
from tests.nets.base import Between, C, OnLastAxis, Together
from tests.nets.blocks import (
    ConvNeXt,
    Deformable,
    DynamicConv,
    Involution,
    Patches,
    PictureNorm,
    SiteMixer,
    SqueezeExcite,
    Tied,
    UnfoldConv,
)
from tests.nets.reductions import REDUCTIONS
from tests.nets.resampling import RESAMPLING
from tests.nets.views import VIEWS

OPERATORS = {**VIEWS, **REDUCTIONS, **RESAMPLING}


PICTURES: dict[str, Callable[[Grid], nn.Module]] = {
    "patches": lambda grid: Patches(),
    "patches 2x4": lambda grid: Patches((2, 4)),
    "patches, channels first": lambda grid: Patches((2, 2), "(c p1 p2)"),
    "unfold and fold": lambda grid: UnfoldConv(),
    "unfold and fold by 2": lambda grid: UnfoldConv(2, 2),
    "attention": lambda grid: Attention(),
    "attention, gated": lambda grid: Attention(gated=True),
    "attention, enable_gqa": lambda grid: Attention("enable_gqa", 1),
    "attention, repeats": lambda grid: Attention("repeats", 1),
    "attention, broadcast": lambda grid: Attention("broadcast", 1),
    "attention, einsum": lambda grid: Attention("einsum"),
    "attention, cosine": lambda grid: Attention("cosine"),
    "attention, causal": lambda grid: Attention("causal"),
    "windows": lambda grid: OnLastAxis(Windows(grid)),
    "windows, einops": lambda grid: OnLastAxis(Windows(grid, einops=True)),
    "windows, shifted": lambda grid: OnLastAxis(Windows(grid, shift=2)),
    "swin": Swin,
    "convnext": lambda grid: ConvNeXt(),
    "convnext v2": lambda grid: ConvNeXt(response=True),
    "squeeze excite": lambda grid: SqueezeExcite(),
    "squeeze excite, linear": lambda grid: SqueezeExcite(linear=True),
    "axial attention": lambda grid: Axial(),
    "involution": lambda grid: Involution(),
    "dynamic kernels": lambda grid: Involution(1, normed=True),
    "dynamic convolution": lambda grid: DynamicConv(),
    "deformable": lambda grid: Deformable(),
    "picture norm": PictureNorm,
    "mixer": SiteMixer,
    "latents": lambda grid: Latents(),
    "fewer keys": lambda grid: FewerKeys(),
    "rotary": Rotary,
    "tied": Tied,
    **{name: lambda grid, f=f: Between(f) for name, f in OPERATORS.items()},
}
"""What maps one picture to one; the sides of its grid are multiples of 4."""


def pictures(names: list[str], grid: Grid = (8, 12), batch: int = 1) -> Example:
    """Several networks of :data:`PICTURES` as one."""
    torch.manual_seed(0)
    model = Together({name: PICTURES[name](grid) for name in names})
    return Example(model, {"x": torch.randn(batch, C, *grid)})
