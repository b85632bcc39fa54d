"""The operators of ours on the CPU, for a process with Triton's interpreter: by their kernels."""

from __future__ import annotations

from functools import partial

import torch
from sparsify.codegen.kernels import gather_conv, overlay_attention

for name, launch in (
    ("gather_conv", partial(gather_conv.launch, config=gather_conv.tile(16, 16, 16, 4, 2))),
    (
        "overlay_attention",
        partial(overlay_attention.launch, config=overlay_attention.tile(16, 16, 4, 2)),
    ),
):
    torch.library.impl(f"sparsify::{name}", "CPU", launch)
