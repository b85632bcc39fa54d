"""Cuts and joins: slices, parts, writes and repetitions -> slice, select, cat and expand."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import ResultOf, rewrite
from ..rules.base import argument, shape_of, source
from .base import call, same_kind

aten = torch.ops.aten


@rewrite(ResultOf(aten.unbind))
def entry(node: Node) -> Node:
    """A part of unbind -> select."""
    whole = source(node)
    return call(node, aten.select.int, source(whole), argument(whole, "dim"), node.args[1])


@rewrite(*map(ResultOf, (aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split)))
def part(node: Node) -> Node:
    """A part of chunk or split -> slice."""
    whole, index = source(node), node.args[1]
    dim = argument(whole, "dim") % len(shape_of(source(whole)))
    start = sum(value.shape[dim] for value in whole.meta["val"][:index])
    stop = start + shape_of(node)[dim]
    return call(node, aten.slice.Tensor, source(whole), dim, start, stop)


@rewrite(aten.narrow.default)
def narrow(node: Node) -> Node:
    """narrow -> slice."""
    dim, start = argument(node, "dim"), argument(node, "start")
    return call(node, aten.slice.Tensor, source(node), dim, start, start + argument(node, "length"))


@rewrite(aten.slice.Tensor)
def whole_slice(node: Node) -> Node:
    """slice of everything -> nothing."""
    if shape_of(node) != shape_of(source(node)):
        raise Unmatched("it takes a part")
    return source(node)


@rewrite(aten.stack.default)
def stack(node: Node) -> Node:
    """stack -> cat of unsqueezed parts."""
    parts: Any = node.args[0]
    dim = argument(node, "dim") % len(shape_of(node))
    return call(
        node, aten.cat.default, [call(node, aten.unsqueeze.default, p, dim) for p in parts], dim
    )


@rewrite(aten.concat, aten.concatenate, aten.cat)
def concat(node: Node) -> Node:
    """Aliases of cat -> cat; without its empty parts; of a single tensor -> nothing."""
    given: Any = node.args[0]
    parts: list[Node] = [part for part in given if 0 not in shape_of(part)]
    if len(parts) == 1:
        return parts[0]
    if not parts or (node.target is aten.cat.default and len(parts) == len(given)):
        raise Unmatched("it joins several parts")
    return call(node, aten.cat.default, parts, argument(node, "dim"))


@rewrite(aten.pad_sequence.default)
def pad_sequence(node: Node) -> Node:
    """pad_sequence -> stack of padded parts."""
    if argument(node, "padding_side") != "right":
        raise Unmatched("it pads on the left")
    parts: Any = node.args[0]
    first = argument(node, "batch_first")
    longest, value = shape_of(node)[1 if first else 0], argument(node, "padding_value")
    padded = []
    for x in parts:
        missing = longest - shape_of(x)[0]
        pads = [0, 0] * (len(shape_of(x)) - 1) + [0, missing]
        padded.append(call(node, aten.pad.default, x, pads, "constant", value) if missing else x)
    return call(node, aten.stack.default, padded, 0 if first else 1)


@rewrite(aten.slice_scatter.default)
def slice_scatter(node: Node) -> Node:
    """slice_scatter -> cat of what stays and what is new; with steps, entry by entry of a step."""
    x, new, step = source(node), source(node, 1), argument(node, "step")
    dim, shape = argument(node, "dim") % len(shape_of(node)), list(shape_of(node))
    start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(shape[dim])
    if step == 1:
        return replaced(node, x, new, dim, start, stop)
    if start >= step or shape_of(new)[dim] * step != shape[dim]:
        raise Unmatched("its steps do not divide the axis")
    steps = [*shape[:dim], shape[dim] // step, step, *shape[dim + 1 :]]
    x = call(node, aten.reshape.default, x, steps)
    new = call(node, aten.unsqueeze.default, new, dim + 1)
    joined = replaced(node, x, new, dim + 1, start, start + 1)
    return call(node, aten.reshape.default, joined, shape)


@rewrite(aten.select_scatter.default)
def select_scatter(node: Node) -> Node:
    """select_scatter -> cat of what stays and what is new."""
    dim = argument(node, "dim") % len(shape_of(node))
    index = argument(node, "index") % shape_of(node)[dim]
    new = call(node, aten.unsqueeze.default, source(node, 1), dim)
    return replaced(node, source(node), new, dim, index, index + 1)


@rewrite(aten.copy.default)
def copy(node: Node) -> Node:
    """copy(x, new) of one shape and type -> new."""
    if not same_kind(source(node), source(node, 1)):
        raise Unmatched("it casts or expands")
    return source(node, 1)


@rewrite(aten.repeat.default, aten.repeat_interleave.self_int)
def repeat(node: Node) -> Node:
    """repeat, and repeat_interleave along one axis -> expand and reshape."""
    if argument(node, "dim", 0) is None:
        raise Unmatched("it repeats the entries of all axes")
    shape, x = shape_of(node), source(node)
    if node.target is aten.repeat.default:
        sizes = (1,) * (len(shape) - len(shape_of(x))) + shape_of(x)
        counts = argument(node, "repeats")
        thin = [part for size in sizes for part in (1, size)]
        wide = [part for pair in zip(counts, sizes, strict=True) for part in pair]
    else:
        dim = argument(node, "dim") % len(shape)
        thin, wide = list(shape_of(x)), list(shape_of(x))
        thin.insert(dim + 1, 1)
        wide.insert(dim + 1, argument(node, "repeats"))
    if shape == shape_of(x):
        return x
    expanded = call(node, aten.expand.default, call(node, aten.reshape.default, x, thin), wide)
    return call(node, aten.reshape.default, expanded, list(shape))


def replaced(node: Node, x: Node, new: Node, dim: int, start: int, stop: int) -> Node:
    """``x`` with its entries from ``start`` to ``stop`` replaced by ``new``."""
    size, parts = shape_of(x)[dim], [new]
    if start > 0:
        parts.insert(0, call(node, aten.slice.Tensor, x, dim, 0, start))
    if stop < size:
        parts.append(call(node, aten.slice.Tensor, x, dim, stop, size))
    return parts[0] if len(parts) == 1 else call(node, aten.cat.default, parts, dim)
