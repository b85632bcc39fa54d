"""Copies, casts, views, cuts and joins."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import ops
from sparsify.codegen.errors import CaptureError
from torch.fx import Node

from ..rules.base import argument, permutation, shape_of, source
from .base import call, permuted, reshaped, result_of

aten = torch.ops.aten

# Nothing is written in place after capture, so copies and checks have no effect.
_TRANSPARENT = (aten.clone, aten.alias, aten.detach, aten.contiguous, aten.lift_fresh_copy)


def drop_copies(node: Node) -> Node | None:
    """clone(x) -> x; casts that change nothing, pads of nothing, x * 1 and x / 1 -> x."""
    if getattr(node.target, "overloadpacket", None) in _TRANSPARENT:
        return source(node)
    if node.target is aten.pad.default and not any(argument(node, "pad")):
        return source(node)
    by_one = node.target in (aten.mul.Tensor, aten.div.Tensor) and node.args[1] == 1
    if by_one or node.target is aten._to_copy.default:
        before, after = node.args[0], node.meta["val"]
        if isinstance(before, Node) and _kind(before.meta["val"]) == _kind(after):
            return before
    return None


def _kind(value: torch.Tensor) -> tuple[Any, ...]:
    return value.shape, value.dtype, value.device


_VIEWS = (
    *(aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze),
    *(aten.flatten, aten.unflatten, aten.view_as, aten.reshape_as),
)


def free_view(node: Node) -> Node | None:
    """view and its kin -> reshape: strides are not the captured ones once copies are gone."""
    if getattr(node.target, "overloadpacket", None) not in _VIEWS:
        return None
    if node.target is aten.view.dtype:
        return call(
            node, aten.view.dtype, call(node, aten.contiguous.default, source(node)), node.args[1]
        )
    return call(node, aten.reshape.default, source(node), list(shape_of(node)))


def merged_reshape(node: Node) -> Node | None:
    """reshape of reshape -> reshape; to the same shape -> nothing."""
    if node.target is not aten.reshape.default:
        return None
    x, shape = source(node), shape_of(node)
    while x.target is aten.reshape.default:
        x = source(x)
    if shape_of(x) == shape:
        return x
    return None if x is source(node) else call(node, aten.reshape.default, x, list(shape))


def strided(node: Node) -> Node | None:
    """as_strided -> ops.as_strided: strides are not the captured ones once copies are gone.

    Raises :class:`CaptureError` where it reads past its operand, or writes into it.
    """
    if node.target is aten.as_strided_scatter.default:
        raise CaptureError(f"{node.name} writes through as_strided: index or reshape instead")
    if node.target is not aten.as_strided.default:
        return None
    x, size, stride = source(node), argument(node, "size"), argument(node, "stride")
    value, offset = x.meta["val"], argument(node, "storage_offset")
    start = 0 if offset is None else offset - value.storage_offset()
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not (value.permute(order).is_contiguous() and start >= 0 and last < value.numel()):
        raise CaptureError(
            f"{node.name} (as_strided) reads memory around {x}: index or reshape it instead"
        )
    return call(node, ops.as_strided, x, order, size, stride, start)


def complex_view(node: Node) -> Node | None:
    """view_as_complex -> ops.as_complex: strides are not the captured ones once copies are gone."""
    if node.target is not aten.view_as_complex.default:
        return None
    return call(node, ops.as_complex, source(node))


def stack(node: Node) -> Node | None:
    """stack -> cat of unsqueezed parts."""
    if node.target is not aten.stack.default:
        return None
    parts: Any = node.args[0]
    dim = argument(node, "dim") % len(shape_of(node))
    return call(
        node, aten.cat.default, [call(node, aten.unsqueeze.default, p, dim) for p in parts], dim
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
        return call(node, aten.select.int, source(whole), argument(whole, "dim"), index)
    if packet not in _SPLITS:
        return None
    dim = argument(whole, "dim") % len(shape_of(source(whole)))
    start = sum(value.shape[dim] for value in whole.meta["val"][:index])
    stop = start + shape_of(node)[dim]
    return call(node, aten.slice.Tensor, source(whole), dim, start, stop)


def narrow(node: Node) -> Node | None:
    """narrow -> slice."""
    if node.target is not aten.narrow.default:
        return None
    dim, start = argument(node, "dim"), argument(node, "start")
    return call(node, aten.slice.Tensor, source(node), dim, start, start + argument(node, "length"))


def type_as(node: Node) -> Node | None:
    """type_as -> a cast, or nothing."""
    if node.target is not aten.type_as.default:
        return None
    x, wanted = source(node), node.meta["val"]
    if (wanted.dtype, wanted.device) == (x.meta["val"].dtype, x.meta["val"].device):
        return x
    return call(node, aten._to_copy.default, x, dtype=wanted.dtype, device=wanted.device)


_FILLS = {
    aten.new_zeros: 0,
    aten.zeros_like: 0,
    aten.new_ones: 1,
    aten.ones_like: 1,
    aten.new_full: None,
    aten.full_like: None,
    aten.empty_like: 0,
    aten.new_empty: 0,
}


def _made(node: Node, factory: Any, *args: Any) -> Node:
    """A tensor of the shape, type and device of ``node``."""
    like = node.meta["val"]
    return call(node, factory, list(like.shape), *args, dtype=like.dtype, device=like.device)


def constant_fill(node: Node) -> Node | None:
    """zeros_like, new_full and their kin read nothing but a shape -> full."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _FILLS:
        return None
    value = _FILLS[packet] if _FILLS[packet] is not None else argument(node, "fill_value")
    return _made(node, aten.full.default, value)


_DRAWS = {aten.randn_like.default: aten.randn.default, aten.rand_like.default: aten.rand.default}


def draw(node: Node) -> Node | None:
    """randn_like and rand_like read nothing but a shape -> randn, rand."""
    return _made(node, _DRAWS[node.target]) if node.target in _DRAWS else None


def dropout(node: Node) -> Node | None:
    """The result of native_dropout -> a product with a drawn pattern, or nothing."""
    drop = result_of(node, aten.native_dropout.default)
    if drop is None:
        return None
    x, rate = source(drop), argument(drop, "p")
    if not argument(drop, "train") or rate == 0:
        return x
    kept = call(node, aten.ge.Scalar, _made(node, aten.rand.default), rate)
    return call(node, aten.mul.Tensor, x, call(node, aten.div.Tensor, kept, max(1 - rate, 1e-12)))


def slice_scatter(node: Node) -> Node | None:
    """slice_scatter -> cat of what stays and what is new; with steps, entry by entry of a step."""
    if node.target is not aten.slice_scatter.default:
        return None
    x, new, step = source(node), source(node, 1), argument(node, "step")
    dim, shape = argument(node, "dim") % len(shape_of(node)), list(shape_of(node))
    start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(shape[dim])
    if step == 1:
        return replaced(node, x, new, dim, start, stop)
    if start >= step or shape_of(new)[dim] * step != shape[dim]:
        return None
    steps = [*shape[:dim], shape[dim] // step, step, *shape[dim + 1 :]]
    x = call(node, aten.reshape.default, x, steps)
    new = call(node, aten.unsqueeze.default, new, dim + 1)
    joined = replaced(node, x, new, dim + 1, start, start + 1)
    return call(node, aten.reshape.default, joined, shape)


def select_scatter(node: Node) -> Node | None:
    """select_scatter -> cat of what stays and what is new."""
    if node.target is not aten.select_scatter.default:
        return None
    dim = argument(node, "dim") % len(shape_of(node))
    index = argument(node, "index") % shape_of(node)[dim]
    new = call(node, aten.unsqueeze.default, source(node, 1), dim)
    return replaced(node, source(node), new, dim, index, index + 1)


def replaced(node: Node, x: Node, new: Node, dim: int, start: int, stop: int) -> Node:
    """``x`` with its entries from ``start`` to ``stop`` replaced by ``new``."""
    size, parts = shape_of(x)[dim], [new]
    if start > 0:
        parts.insert(0, call(node, aten.slice.Tensor, x, dim, 0, start))
    if stop < size:
        parts.append(call(node, aten.slice.Tensor, x, dim, stop, size))
    return parts[0] if len(parts) == 1 else call(node, aten.cat.default, parts, dim)


def copy(node: Node) -> Node | None:
    """copy(x, new) of one shape and type -> new."""
    if node.target is not aten.copy.default:
        return None
    new = source(node, 1)
    return new if _kind(source(node).meta["val"]) == _kind(new.meta["val"]) else None


def concat(node: Node) -> Node | None:
    """Aliases of cat -> cat; without its empty parts; of a single tensor -> nothing."""
    if getattr(node.target, "overloadpacket", None) not in (
        aten.concat,
        aten.concatenate,
        aten.cat,
    ):
        return None
    given: Any = node.args[0]
    parts: list[Node] = [part for part in given if 0 not in shape_of(part)]
    if len(parts) == 1:
        return parts[0]
    if not parts or (node.target is aten.cat.default and len(parts) == len(given)):
        return None
    return call(node, aten.cat.default, parts, argument(node, "dim"))


def whole_slice(node: Node) -> Node | None:
    """slice of everything -> nothing."""
    is_slice = node.target is aten.slice.Tensor
    return source(node) if is_slice and shape_of(node) == shape_of(source(node)) else None


def pad_sequence(node: Node) -> Node | None:
    """pad_sequence -> stack of padded parts."""
    if node.target is not aten.pad_sequence.default:
        return None
    if argument(node, "padding_side") != "right":
        return None
    parts: Any = node.args[0]
    first = argument(node, "batch_first")
    longest, value = shape_of(node)[1 if first else 0], argument(node, "padding_value")
    padded = []
    for x in parts:
        missing = longest - shape_of(x)[0]
        pads = [0, 0] * (len(shape_of(x)) - 1) + [0, missing]
        padded.append(call(node, aten.pad.default, x, pads, "constant", value) if missing else x)
    return call(node, aten.stack.default, padded, 0 if first else 1)


def repeat(node: Node) -> Node | None:
    """repeat, and repeat_interleave along one axis -> expand and reshape."""
    kinds = (aten.repeat.default, aten.repeat_interleave.self_int)
    if node.target not in kinds or argument(node, "dim", 0) is None:
        return None
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


def merged_permute(node: Node) -> Node | None:
    """permute of permute -> permute; one that moves nothing -> nothing."""
    order = permutation(node)
    if order is None:
        return None
    x, merged = source(node), False
    while (inner := permutation(x)) is not None:
        x, order, merged = source(x), [inner[dim] for dim in order], True
    if order == sorted(order):
        return x
    return call(node, aten.permute.default, x, order) if merged else None


def unit_axes(node: Node) -> Node | None:
    """permute of a reshape that only adds or drops axes of size one -> reshape of a permute."""
    order = permutation(node)
    if order is None or source(node).target is not aten.reshape.default:
        return None
    inner = source(node)
    before, middle = shape_of(source(inner)), shape_of(inner)
    kept = [dim for dim, size in enumerate(before) if size > 1]
    if [before[dim] for dim in kept] != [size for size in middle if size > 1]:
        return None
    place = dict(zip([dim for dim, size in enumerate(middle) if size > 1], kept, strict=True))
    moved = [place[dim] for dim in order if dim in place]
    units = [dim for dim in range(len(before)) if dim not in kept]
    x = permuted(node, source(inner), [*units, *moved])
    return reshaped(node, x, shape_of(node))
