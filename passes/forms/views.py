"""Copies, casts, views, cuts and joins."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..rules.base import argument, permutation, shape_of, source
from .base import call

aten = torch.ops.aten

# Nothing is written in place after capture, so copies and checks have no effect.
_TRANSPARENT = (aten.clone, aten.alias, aten.detach, aten.contiguous, aten.lift_fresh_copy)


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
    return call(node, aten.reshape.default, source(node), list(shape_of(node)))


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
}


def constant_fill(node: Node) -> Node | None:
    """zeros_like, new_full and their kin read nothing but a shape -> full."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _FILLS:
        return None
    value = _FILLS[packet] if _FILLS[packet] is not None else argument(node, "fill_value")
    wanted = node.meta["val"]
    options = {"dtype": wanted.dtype, "device": wanted.device}
    return call(node, aten.full.default, list(wanted.shape), value, **options)


def slice_scatter(node: Node) -> Node | None:
    """slice_scatter of a contiguous range -> cat of what stays and what is new."""
    if node.target is not aten.slice_scatter.default or argument(node, "step") != 1:
        return None
    x, new = source(node), source(node, 1)
    dim = argument(node, "dim") % len(shape_of(node))
    size = shape_of(node)[dim]
    start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(size)
    parts = [new]
    if start > 0:
        parts.insert(0, call(node, aten.slice.Tensor, x, dim, 0, start))
    if stop < size:
        parts.append(call(node, aten.slice.Tensor, x, dim, stop, size))
    return parts[0] if len(parts) == 1 else call(node, aten.cat.default, parts, dim)


def copy(node: Node) -> Node | None:
    """copy(x, new) of one shape and type -> new."""
    if node.target is not aten.copy.default:
        return None
    old, new = source(node).meta["val"], source(node, 1).meta["val"]
    same = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
    return source(node, 1) if same else None


def concat(node: Node) -> Node | None:
    """Aliases of cat -> cat."""
    if node.target not in (aten.concat.default, aten.concatenate.default):
        return None
    return call(node, aten.cat.default, node.args[0], argument(node, "dim"))


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
    """permute of permute -> permute."""
    outer = permutation(node)
    inner = permutation(source(node)) if outer is not None else None
    if outer is None or inner is None:
        return None
    return call(node, aten.permute.default, source(source(node)), [inner[dim] for dim in outer])


def patches(node: Node) -> Node | None:
    """Reshape [N, C, H, W] -> [N, C, h, p, w, p] -> pixel unshuffle, and the way back.

    So the patches of a transformer lie on the coarse grid, and its picture on the fine one.
    """
    if node.target is not aten.reshape.default:
        return None
    before, after = shape_of(source(node)), shape_of(node)
    if _is_patched(after, before):
        return _to_patches(node, after)
    if _is_patched(before, after):
        return _from_patches(node, before)
    return None


def _is_patched(patched: tuple[int, ...], image: tuple[int, ...]) -> bool:
    if len(patched) != 6 or len(image) != 4 or patched[:2] != image[:2]:
        return False
    _, _, rows, high, columns, wide = patched
    square = high == wide and high > 1 and min(rows, columns) > 1
    return square and (rows * high, columns * wide) == image[2:]


def _to_patches(node: Node, patched: tuple[int, ...]) -> Node:
    batch, channels, rows, patch, columns, _ = patched
    coarse = call(node, aten.pixel_unshuffle.default, source(node), patch)
    shape = [batch, channels, patch, patch, rows, columns]
    parts = call(node, aten.reshape.default, coarse, shape)
    return call(node, aten.permute.default, parts, [0, 1, 4, 2, 5, 3])


def _from_patches(node: Node, patched: tuple[int, ...]) -> Node:
    batch, channels, rows, patch, columns, _ = patched
    parts = call(node, aten.permute.default, source(node), [0, 1, 3, 5, 2, 4])
    shape = [batch, channels * patch * patch, rows, columns]
    coarse = call(node, aten.reshape.default, parts, shape)
    return call(node, aten.pixel_shuffle.default, coarse, patch)
