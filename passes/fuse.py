"""Fewer passes over memory: patterns of the update graph as single operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sparsify.codegen import by_item, norms, opaque, ops, products
from sparsify.codegen.gather_conv import gather_conv
from sparsify.codegen.group_statistics import group_statistics
from sparsify.codegen.overlay_attention import key_bias, overlay_attention
from sparsify.codegen.prepack import fuses
from torch.fx import GraphModule, Node

from .base import Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class Fused:
    """What became of one convolution, attention or norm of the update graph."""

    name: str
    operator: str
    parts: tuple[str, ...]
    """What the operator does besides."""
    left: str
    """Why it does not do more; empty if it does all."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Swaps in ``gather_conv`` with its epilogue, ``overlay_attention`` and
    ``group_statistics``, and leaves a :class:`Fused` for each under ``module.meta["fused"]``.
    """

    requires: ClassVar[tuple[str, ...]] = ("shapes",)
    graphs: ClassVar[tuple[str, ...]] = ("update",)

    def __call__(self, module: GraphModule) -> GraphModule:
        found = [rule(node) for node in list(module.graph.nodes) for rule in _RULES]
        module.meta["fused"] = [fused for fused in found if fused is not None]
        module.graph.eliminate_dead_code()
        return module


def fuse_conv(node: Node) -> Fused | None:
    """gather_conv, + shift, activation, * scale, + residual -> one operator.

    Halo rows that are taken from the baseline for it are read where they stand, and so are rows
    that a resize repeats.
    """
    if node.target is not products.gather_conv:
        return None
    format = str(node.kwargs["format"])
    if not fuses(format):
        return Fused(node.name, "gather_conv", (), f"its weight is in {format}")
    operands, parts = _sources(node)
    epilogue: dict[str, Any] = {"format": format}
    last = node
    for step in (_shift, _activation, _scale, _residual):
        user = _only_user(last)
        if user is not None and (taken := step(user, last)):
            epilogue.update(taken)
            last = user
            parts.append(step.__name__.strip("_"))
    left = _left(last)
    _swap(last, gather_conv, operands, epilogue)
    return Fused(node.name, "gather_conv", tuple(parts), left)


def _swap(node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] = {}) -> None:  # noqa: B006
    """``target(*args, **kwargs)`` in the place of ``node``."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, kwargs)
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)


def _sources(node: Node) -> tuple[tuple[Any, ...], list[str]]:
    """(x, halo, halo_sites, kernel_map, weight, bias), and what of it is read where it stands."""
    x, halo, kernel_map, weight, bias = node.args
    if not isinstance(halo, Node) or halo.target is not ops.take_rows:
        return (x, halo, None, kernel_map, weight, bias), []
    graph, parts = node.graph, ["halo"]
    stored, halo_sites = halo.args
    with graph.inserting_before(node):
        if isinstance(x, Node) and _is_resize(x, stored):
            low, taken, moves = x.args
            assert isinstance(taken, Node)
            arguments = (kernel_map, moves, low, taken.args[1])
            kernel_map = graph.call_function(ops.through, arguments)
            halo_sites = graph.call_function(aten.cat.default, ([taken.args[1], halo_sites],))
            x, parts = low, ["halo", "resize"]
        halo = graph.call_function(aten.transpose.int, (stored, 1, 2))
    return (x, halo, halo_sites, kernel_map, weight, bias), parts


def _is_resize(x: Node, stored: Any) -> bool:
    """A gather of single rows for one reader, whose halo comes from the same recorded value."""
    if x.target is not ops.gather_one or len(x.args) != 3 or _only_user(x) is None:
        return False
    taken = x.args[1]
    return isinstance(taken, Node) and taken.target is ops.take_rows and taken.args[0] is stored


def fuse_attention(node: Node) -> Fused | None:
    """attention over overlaid keys and values -> one operator that never writes them out."""
    if node.target is by_item.attention:
        return Fused(node.name, "attention", (), "each item of the batch has keys of its own")
    if node.target is not opaque.attention:
        return None
    query, key, value = node.args[:3]
    overlays = [x for x in (key, value) if isinstance(x, Node) and x.target is ops.overlay]
    if not overlays:
        return None
    if refusal := _refusal(node, overlays):
        return Fused(node.name, "attention", (), refusal)
    pairs: Any = [x.args for x in overlays]
    (base_key, new_key, sites, _), (base_value, new_value, *_) = pairs
    scale = node.kwargs.get("scale")
    scale = _shape(overlays[0])[-1] ** -0.5 if scale is None else scale
    bias = _bias(node, sites, _shape(base_key)[2])
    operands = (query, base_key, base_value, new_key, new_value, bias, scale)
    _swap(node, overlay_attention, operands)
    return Fused(node.name, "overlay_attention", ("keys", "values"), "")


def _bias(node: Node, sites: Any, positions: int) -> Node:
    """One for all attentions over the same sites."""
    for user in sites.users:
        if user.target is key_bias and user.args == (sites, positions):
            return user  # type: ignore[no-any-return]
    with node.graph.inserting_after(sites):
        return node.graph.call_function(key_bias, (sites, positions))


def _refusal(node: Node, overlays: list[Node]) -> str:
    """Why the keys and values of an attention are written out; empty if they need not be."""
    given = {**dict(zip(_OPTIONS, node.args[3:], strict=False)), **node.kwargs}
    others = {name: given.get(name) for name in _OPTIONS if given.get(name)}
    shapes = {_shape(x)[:2] for x in (node.all_input_nodes[0], *overlays)}
    if len(overlays) < 2:
        return "only the keys or only the values are overlaid"
    if others:
        return f"it has {', '.join(others)}"
    if overlays[0].args[2:] != overlays[1].args[2:] or overlays[0].args[3] != 2:
        return "keys and values have other sites, or not on their third axis"
    if len(shapes) > 1 or len(_shape(node)) != 4:
        return "queries, keys and values are not [N, heads, L, d] of as many heads"
    if any(len(x.users) > 1 for x in overlays):
        return "its keys or values are needed whole elsewhere too"
    return ""


_OPTIONS = ("attn_mask", "dropout_p", "is_causal", "enable_gqa")


def fuse_statistics(node: Node) -> Fused | None:
    """updated_statistics of a padded table -> one operator that reads the baseline in place."""
    if node.target is not norms.updated_statistics or len(node.args) < 7:
        return None
    x, old, *rest = node.args
    assert isinstance(x, Node) and isinstance(old, Node)
    if len(_shape(x)) != 3 or (len(rest) > 5 and _shape(x)[0] != 1):
        return Fused(node.name, "updated_statistics", (), "its input is not [N, C, S]")
    in_place = old.target is ops.take_rows and _stands_for(old.args[1], rest[4])
    if in_place:
        old, rest[4] = old.args
    _swap(node, group_statistics, (x, old, in_place, *rest))
    return Fused(node.name, "group_statistics", ("baseline",) if in_place else (), "")


def _stands_for(table: Any, sites: Any) -> bool:
    """Does ``table`` name ``sites``, or the rows of a recorded value in which they are?"""
    return table is sites or (table.target is ops.same_sites and table.args[1] is sites)


def _shift(user: Node, value: Node) -> dict[str, Any] | None:
    """value + [N, C, 1]"""
    other = _added(user, value)
    shape = _shape(value)
    return {"shift": other} if other and _shape(other) == (*shape[:2], 1) != shape else None


def _residual(user: Node, value: Node) -> dict[str, Any] | None:
    """value + [N, C, S]"""
    other = _added(user, value)
    return {"residual": other} if other and _shape(other) == _shape(value) else None


def _activation(user: Node, value: Node) -> dict[str, Any] | None:
    names: dict[Any, str] = {aten.relu.default: "relu", aten.silu.default: "silu"}
    if user.target is aten.leaky_relu.default:
        slope = user.args[1] if len(user.args) > 1 else 0.01
        return {"activation": "leaky_relu", "slope": slope}
    return {"activation": names[user.target]} if user.target in names else None


def _scale(user: Node, value: Node) -> dict[str, Any] | None:
    """value times or over a number"""
    if user.target not in (aten.mul.Tensor, aten.div.Tensor) or len(user.args) != 2:
        return None
    factor = user.args[1]
    if user.args[0] is not value or not isinstance(factor, (int, float)) or factor == 0:
        return None
    return {"scale": float(factor if user.target is aten.mul.Tensor else 1 / factor)}


def _added(user: Node, value: Node) -> Node | None:
    """The other operand, if ``user`` is a plain sum of ``value`` and another tensor."""
    if user.target is not aten.add.Tensor or user.kwargs or len(user.args) != 2:
        return None
    first, second = user.args
    other = second if first is value else first
    if not isinstance(other, Node) or other is value:
        return None
    return other if _dtype(other) == _dtype(value) else None


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _left(last: Node) -> str:
    """Why an epilogue ends at ``last``."""
    user = _only_user(last)
    if user is None:
        return f"its result is read by {len(last.users)} nodes"
    return f"then {getattr(user.target, '__name__', user.target)}"


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


_RULES: tuple[Callable[[Node], Fused | None], ...] = (fuse_conv, fuse_attention, fuse_statistics)
