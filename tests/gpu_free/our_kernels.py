"""The custom operators on the CPU, for a process with Triton's interpreter: by their kernels."""

from __future__ import annotations

from functools import partial

import torch
from sparsify.codegen import gather_conv
from sparsify.codegen.gather_conv.triton import tile
from sparsify.codegen.group_statistics import triton as group_statistics
from sparsify.codegen.overlay_attention import triton as overlay_attention

small_conv = partial(gather_conv.on_cuda, config=tile(16, 16, 16, 4, 2))
small_attention = partial(overlay_attention.launch, config=overlay_attention.tile(16, 16, 4, 2))
torch.library.impl("sparsify::gather_conv", "CPU", small_conv)
torch.library.impl("sparsify::overlay_attention", "CPU", small_attention)
torch.library.impl("sparsify::group_statistics", "CPU", group_statistics.launch)
