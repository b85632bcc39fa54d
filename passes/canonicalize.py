"""Brings a captured graph to the forms that the rules know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from .rewrites import attention, frames, indices, lines, norms, products, reductions, video, views

aten = torch.ops.aten

_CHECKS = (aten._assert_tensor_metadata, aten._assert_async)

Rewrite = Callable[[Node], Node | None]

VIEWS: tuple[Rewrite, ...] = (
    views.merged_reshape,
    views.unit_axes,
    views.merged_permute,
    views.merged_reshape,
)
"""Fewer views, where some were added or their operators dropped."""

_REWRITES: tuple[Rewrite, ...] = (
    lines.written_lines,
    lines.chunks,
    products.einsum,
    products.matrix_product,
    attention.flex_attention,
    views.strided,
    views.drop_copies,
    products.whole_kernel,
    video.conv3d,
    video.pool3d,
    video.conv_transpose3d,
    frames.pad_frames,
    frames.nearest,
    frames.own_size,
    frames.trilinear,
    reductions.adaptive_pool,
    reductions.max_pool,
    reductions.variance,
    reductions.extreme,
    reductions.prelu,
    reductions.gated,
    reductions.fold,
    views.type_as,
    views.constant_fill,
    views.draw,
    views.dropout,
    views.part,
    views.narrow,
    indices.read,
    indices.write,
    indices.add_rows,
    views.pad_sequence,
    views.stack,
    views.concat,
    views.whole_slice,
    views.repeat,
    views.slice_scatter,
    views.select_scatter,
    views.copy,
    views.free_view,
    *VIEWS,
    views.complex_view,
    norms.string_padding,
    norms.group_statistics,
    norms.instance_norm,
    norms.batch_norm,
    norms.vector_norm,
)


@dataclass(frozen=True)
class Canonicalize:
    """Applies the rewrites in their order, each to the whole graph, and drops dead nodes.

    Requires a functional graph with ``val`` on every node; ensures the same.
    """

    rewrites: tuple[Rewrite, ...] = _REWRITES

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = module.graph
        for node in list(graph.nodes):
            if getattr(node.target, "overloadpacket", None) in _CHECKS:
                graph.erase_node(node)
        for rewrite in self.rewrites:
            for node in [n for n in graph.nodes if n.op == "call_function"]:
                new = rewrite(node)
                if new is not None:
                    node.replace_all_uses_with(new)
                    graph.erase_node(node)
        # Drawing random numbers is no effect either, once nothing reads them.
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        module.recompile()
        return module
