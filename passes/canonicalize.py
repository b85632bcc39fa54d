"""Brings a captured graph to the forms that the rules know."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sparsify.codegen import ops
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from .rules.base import argument, shape_of, source

aten = torch.ops.aten

# Nothing is written in place after capture, so copies and checks have no effect.
_TRANSPARENT = (aten.clone, aten.alias, aten.detach, aten.contiguous, aten.lift_fresh_copy)
_CHECKS = (aten._assert_tensor_metadata, aten._assert_async)


def _call(node: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A node before ``node`` that carries its source line and the value it would have."""
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_function(target, args, kwargs)
    for key in ("stack_trace", "nn_module_stack"):
        if key in node.meta:
            new.meta[key] = node.meta[key]
    values = torch.fx.map_arg((args, kwargs), lambda arg: arg.meta["val"])
    new.meta["val"] = target(*values[0], **values[1])
    return new


def drop_copies(node: Node) -> Node | None:
    """clone(x) -> x; casts that change nothing -> x."""
    if getattr(node.target, "overloadpacket", None) in _TRANSPARENT:
        return source(node)
    if node.target is aten._to_copy.default:
        before, after = source(node).meta["val"], node.meta["val"]
        if (before.dtype, before.device) == (after.dtype, after.device):
            return source(node)
    return None


def free_view(node: Node) -> Node | None:
    """view -> reshape: strides are not the captured ones once copies are gone."""
    if node.target not in (aten.view.default, aten._unsafe_view.default):
        return None
    return _call(node, aten.reshape.default, source(node), list(shape_of(node)))


def complex_view(node: Node) -> Node | None:
    """view_as_complex -> ops.as_complex: strides are not the captured ones once copies are gone."""
    if node.target is not aten.view_as_complex.default:
        return None
    return _call(node, ops.as_complex, source(node))


def stack(node: Node) -> Node | None:
    """stack -> cat of unsqueezed parts."""
    if node.target is not aten.stack.default:
        return None
    parts: Any = node.args[0]
    dim = argument(node, "dim") % len(shape_of(node))
    return _call(
        node, aten.cat.default, [_call(node, aten.unsqueeze.default, p, dim) for p in parts], dim
    )


_SPLITS = (aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split)


def part(node: Node) -> Node | None:
    """A part of chunk, split or unbind -> slice or select."""
    if node.target is not operator.getitem:
        return None
    whole, index = source(node), node.args[1]
    packet = getattr(whole.target, "overloadpacket", None)
    assert isinstance(index, int)
    if packet is aten.unbind:
        return _call(node, aten.select.int, source(whole), argument(whole, "dim"), index)
    if packet not in _SPLITS:
        return None
    dim = argument(whole, "dim") % len(shape_of(source(whole)))
    start = sum(value.shape[dim] for value in whole.meta["val"][:index])
    stop = start + shape_of(node)[dim]
    return _call(node, aten.slice.Tensor, source(whole), dim, start, stop)


def narrow(node: Node) -> Node | None:
    """narrow -> slice."""
    if node.target is not aten.narrow.default:
        return None
    dim, start = argument(node, "dim"), argument(node, "start")
    return _call(
        node, aten.slice.Tensor, source(node), dim, start, start + argument(node, "length")
    )


def string_padding(node: Node) -> Node | None:
    """conv2d(padding="same" | "valid") -> conv2d with numbers (and a pad if it is uneven)."""
    if node.target is not aten.conv2d.padding:
        return None
    x, weight = source(node), source(node, 1)
    bias, stride = argument(node, "bias"), argument(node, "stride")
    dilation, groups = argument(node, "dilation"), argument(node, "groups")
    totals = [0, 0]
    if argument(node, "padding") == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, shape_of(weight)[-2:], strict=False)]
    low = [total // 2 for total in totals]
    if any(total % 2 for total in totals):
        top, left = low
        pads = [left, totals[1] - left, top, totals[0] - top]
        x, low = _call(node, aten.pad.default, x, pads, "constant", 0.0), [0, 0]
    return _call(node, aten.conv2d.default, x, weight, bias, stride, low, dilation, groups)


def group_statistics(node: Node) -> Node | None:
    """group_norm -> ops.group_norm, which also returns mean and rstd."""
    if node.target is not aten.group_norm.default:
        return None
    names = ("num_groups", "weight", "bias", "eps")
    return _group_norm(node, *(argument(node, name) for name in names))


def instance_norm(node: Node) -> Node | None:
    """instance_norm -> ops.group_norm with one channel a group."""
    if node.target is not aten.instance_norm.default or not argument(node, "use_input_stats"):
        return None
    names = ("weight", "bias", "eps")
    return _group_norm(node, shape_of(node)[1], *(argument(node, name) for name in names))


def _group_norm(node: Node, groups: int, weight: Any, bias: Any, eps: float) -> Node:
    norm = _call(node, ops.group_norm, source(node), weight, bias, groups, eps)
    return _call(node, operator.getitem, norm, 0)


def batch_norm(node: Node) -> Node | None:
    """Batch norm with running statistics -> x * scale + shift."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return None
    norm = source(node)
    if norm.target is not aten._native_batch_norm_legit_no_training.default:
        return None
    x, weight, bias, mean, variance, _, eps = norm.args
    assert isinstance(eps, float)
    shape = [1, -1] + [1] * (len(shape_of(node)) - 2)
    scale = _call(node, aten.rsqrt.default, _call(node, aten.add.Tensor, variance, eps))
    if weight is not None:
        scale = _call(node, aten.mul.Tensor, scale, weight)
    shift = _call(node, aten.neg.default, _call(node, aten.mul.Tensor, mean, scale))
    if bias is not None:
        shift = _call(node, aten.add.Tensor, shift, bias)
    scale = _call(node, aten.reshape.default, scale, shape)
    shift = _call(node, aten.reshape.default, shift, shape)
    return _call(node, aten.add.Tensor, _call(node, aten.mul.Tensor, x, scale), shift)


def matrix_product(node: Node) -> Node | None:
    """baddbmm / addmm -> a product and a sum; with beta = 0 the sum is left out."""
    if node.target not in (aten.baddbmm.default, aten.addmm.default):
        return None
    base, first, second = node.args
    alpha, beta = argument(node, "alpha"), argument(node, "beta")
    product = _call(node, aten.matmul.default, first, second)
    if alpha != 1:
        product = _call(node, aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    if beta != 1:
        base = _call(node, aten.mul.Tensor, base, beta)
    return _call(node, aten.add.Tensor, product, base)


def einsum(node: Node) -> Node | None:
    """einsum -> permutes, views and a batched product, as torch itself computes it."""
    if node.target is not aten.einsum.default:
        return None
    equation: Any
    operands: Any
    equation, operands = node.args[:2]
    values = [operand.meta["val"] for operand in operands]
    traced = make_fx(lambda *xs: torch.einsum(equation, *xs))(*values)
    return _inline(node, traced.graph, operands)


def _inline(node: Node, graph: torch.fx.Graph, operands: list[Node]) -> Node:
    """Copies a traced graph in before ``node``."""
    values: dict[Node, Node] = dict(zip(graph.find_nodes(op="placeholder"), operands, strict=True))
    for inner in graph.nodes:
        if inner.op == "call_function":
            args, kwargs = torch.fx.map_arg((inner.args, inner.kwargs), values.__getitem__)
            values[inner] = _call(node, inner.target, *args, **kwargs)
    result = graph.output_node().args[0]
    assert isinstance(result, Node)
    return values[result]


_RULES: tuple[Callable[[Node], Node | None], ...] = (
    einsum,
    matrix_product,
    drop_copies,
    free_view,
    complex_view,
    stack,
    part,
    narrow,
    string_padding,
    group_statistics,
    instance_norm,
    batch_norm,
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
