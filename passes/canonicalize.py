"""Brings a captured graph to the forms that the rules know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from .forms import norms, patches, products, video, views

aten = torch.ops.aten

_CHECKS = (aten._assert_tensor_metadata, aten._assert_async)

_RULES: tuple[Callable[[Node], Node | None], ...] = (
    products.einsum,
    products.matrix_product,
    video.conv3d,
    video.pool3d,
    video.pad_frames,
    video.nearest,
    views.drop_copies,
    views.type_as,
    views.constant_fill,
    views.part,
    views.narrow,
    views.pad_sequence,
    views.stack,
    views.concat,
    views.whole_slice,
    views.repeat,
    views.slice_scatter,
    views.select_scatter,
    views.copy,
    views.free_view,
    views.merged_reshape,
    patches.patches,
    patches.unit_axes,
    views.merged_permute,
    views.merged_reshape,
    views.complex_view,
    norms.string_padding,
    norms.group_statistics,
    norms.instance_norm,
    norms.batch_norm,
    norms.vector_norm,
)


@dataclass(frozen=True)
class Canonicalize:
    """Applies the rules above in their order, each to the whole graph, and drops dead nodes.

    Requires a functional graph with ``val`` on every node; ensures the same.
    """

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = module.graph
        for node in list(graph.nodes):
            if getattr(node.target, "overloadpacket", None) in _CHECKS:
                graph.erase_node(node)
        for rule in _RULES:
            for node in [n for n in graph.nodes if n.op == "call_function"]:
                new = rule(node)
                if new is not None:
                    node.replace_all_uses_with(new)
                    graph.erase_node(node)
        graph.eliminate_dead_code()
        module.recompile()
        return module
