"""What is computed line by line, or chunk by chunk, and put together again -> computed at once.

Tiles are blended row by row (``b[:, :, y] = a[:, :, y] * (1 - y / n) + b[:, :, y] * (y / n)``), and
feed-forward layers run over chunks of the tokens. Each line would be a grid of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call

aten = torch.ops.aten

_SPLITS = (aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split)
_EACH_ALONE = (aten.clone, aten.contiguous, aten.alias, aten.detach, aten._to_copy, aten.dropout)


_APART = "its parts are computed in different ways"


class Lines(NamedTuple):
    """Entries from ``start`` to ``stop`` of a value along some axis."""

    of: Node
    start: int
    stop: int


@rewrite(aten.cat.default)
def chunks(node: Node) -> Node:
    """cat of the same function of all parts of a value -> the function of the value."""
    parts: Any = node.args[0]
    dim = argument(node, "dim") % len(shape_of(node))
    if len(parts) < 2 or parts[0].target is operator.getitem or len(set(parts)) < len(parts):
        raise Unmatched("nothing is computed of its parts")
    made = _AtOnce(node, dim, [shape_of(part)[dim] for part in parts]).value(parts)
    if made is None:
        raise Unmatched(_APART)
    return made


@rewrite(aten.select_scatter.default)
def written_lines(node: Node) -> Node:
    """The last of several select_scatters -> cat of what stays and of what is computed alike."""
    dim = argument(node, "dim") % len(shape_of(node))
    is_last = not any(_writes(user, dim) and source(user) is node for user in node.users)
    if not (is_last and _writes(source(node), dim)):
        raise Unmatched("it is not the last of several")
    parts: list[Node] = []
    lines = [_line(node, dim, index) for index in range(shape_of(node)[dim])]
    while lines:
        count = _run(lines)
        first, last = lines[0], lines[count - 1]
        if isinstance(first, Lines) and isinstance(last, Lines):
            part: Node | None = _cut(node, dim, Lines(first.of, first.start, last.stop))
        else:
            part = _AtOnce(node, dim, [1] * count).value([x for x in lines[:count]])
        if part is None:
            raise Unmatched(_APART)
        parts.append(part)
        del lines[:count]
    return parts[0] if len(parts) == 1 else call(node, aten.cat.default, parts, dim)


def _writes(node: Node, dim: int) -> bool:
    is_write = node.target is aten.select_scatter.default
    return is_write and argument(node, "dim") % len(shape_of(node)) == dim


def _run(lines: Sequence[Lines | Node]) -> int:
    """How many of the first lines stand side by side, or are written one by one."""
    for count in range(1, len(lines)):
        before, here = lines[count - 1], lines[count]
        if isinstance(before, Lines) and isinstance(here, Lines):
            if (before.of, before.stop) == (here.of, here.start):
                continue
        elif isinstance(before, Node) and isinstance(here, Node):
            continue
        return count
    return len(lines)


def _line(x: Node, dim: int, index: int) -> Lines | Node:
    """Where the entry ``index`` of ``x`` along ``dim`` comes from: a line of another value, or one
    that was written."""
    while _writes(x, dim):
        if argument(x, "index") % shape_of(x)[dim] == index:
            new = source(x, 1)
            is_copy = new.target is aten.copy.default and _alike(source(new), source(new, 1))
            return source(new, 1) if is_copy else new
        x = source(x)
    return Lines(x, index, index + 1)


def _alike(first: Node, second: Node) -> bool:
    a, b = first.meta["val"], second.meta["val"]
    return bool((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device))


def _cut(node: Node, dim: int, lines: Lines) -> Node:
    if lines.stop - lines.start == shape_of(lines.of)[dim]:
        return lines.of
    return call(node, aten.slice.Tensor, lines.of, dim, lines.start, lines.stop)


class _AtOnce:
    """Computes parts of ``sizes`` along ``dim`` of ``node`` at once. Values of written lines lack
    this axis; what takes their place has it."""

    def __init__(self, node: Node, dim: int, sizes: list[int]) -> None:
        self._node, self._dim, self._sizes = node, dim, sizes
        self._rank = len(shape_of(node))
        self._made: dict[tuple[Any, ...], Node | None] = {}

    def value(self, parts: Sequence[Any]) -> Node | None:
        """One value that holds all ``parts``, None where they are not computed alike."""
        key = tuple(parts)
        if key not in self._made:
            lines = [self._lines(part) for part in parts]
            found = [x for x in lines if isinstance(x, Lines)]
            if len(found) == len(parts):
                self._made[key] = self._whole(found)
            else:
                self._made[key] = self._computed(parts)
        return self._made[key]

    def _lines(self, part: Any) -> Lines | None:
        """Which entries of another value ``part`` is."""
        target = getattr(part, "target", None)
        if target is aten.select.int and len(shape_of(part)) == self._rank - 1:
            x = source(part)
            if argument(part, "dim") % self._rank != self._dim:
                return None
            line = _line(x, self._dim, argument(part, "index") % shape_of(x)[self._dim])
            return line if isinstance(line, Lines) else self._lines(line)
        if target is aten.slice.Tensor and argument(part, "step") == 1:
            x, given = source(part), slice(argument(part, "start"), argument(part, "end"))
            if argument(part, "dim") % len(shape_of(x)) != self._dim:
                return None
            start, stop, _ = given.indices(shape_of(x)[self._dim])
            return Lines(x, start, stop)
        if target is not operator.getitem:
            return None
        whole, index = source(part), part.args[1]
        if getattr(whole.target, "overloadpacket", None) not in _SPLITS:
            return None
        if argument(whole, "dim") % len(shape_of(source(whole))) != self._dim:
            return None
        start = sum(value.shape[self._dim] for value in whole.meta["val"][:index])
        return Lines(source(whole), start, start + shape_of(part)[self._dim])

    def _whole(self, lines: list[Lines]) -> Node | None:
        for before, here, size in zip(lines, lines[1:], self._sizes, strict=False):
            if (before.of, before.stop) != (
                here.of,
                here.start,
            ) or before.stop - before.start != size:
                return None
        if lines[-1].stop - lines[-1].start != self._sizes[-1]:
            return None
        return _cut(self._node, self._dim, Lines(lines[0].of, lines[0].start, lines[-1].stop))

    def _computed(self, parts: Sequence[Any]) -> Node | None:
        first = parts[0]
        if not all(isinstance(x, Node) and x.target == first.target for x in parts):
            return None
        if first.op != "call_function" or any(x.kwargs != first.kwargs for x in parts):
            return None
        if len({len(x.args) for x in parts}) > 1 or not (count := self._merges(first)):
            return None
        args: list[Any] = []
        for index, several in enumerate(zip(*(x.args for x in parts), strict=True)):
            arg = self._argument(several) if index < count else _same(several)
            if arg is None and any(x is not None for x in several):
                return None
            args.append(arg)
        if not any(isinstance(arg, Node) for arg in args):
            return None
        made = call(self._node, first.target, *args, **first.kwargs)
        if (
            isinstance(value := first.meta["val"], torch.Tensor)
            and made.meta["val"].dtype != value.dtype
        ):
            made = call(self._node, aten._to_copy.default, made, dtype=value.dtype)
        return made

    def _merges(self, node: Node) -> int:
        """How many of the first arguments hold the lines of an operator that takes each alone."""
        if node.target is operator.getitem:
            return 1
        packet = getattr(node.target, "overloadpacket", None)
        from_back = self._dim - self._rank
        if packet is aten.linear and from_back < -1:
            return 1
        if packet is aten.layer_norm and from_back < -len(argument(node, "normalized_shape")):
            return 1
        if packet in _SPLITS:
            rank = len(shape_of(source(node)))
            return int(argument(node, "dim") % rank - rank > from_back)
        if packet in _EACH_ALONE:
            return 0 if packet is aten.dropout and argument(node, "train") else 1
        is_pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        return len(node.args) if is_pointwise else 0

    def _argument(self, several: tuple[Any, ...]) -> Any:
        """The operand in the place of ``several``."""
        first = several[0]
        if isinstance(first, Node):
            below = len(several) > 1 and all(x is first for x in several)
            if below and len(shape_of(first)) < self._rank - self._dim:
                return first  # stands beside the lines
            return self.value(several)
        if all(type(x) is type(first) and x == first for x in several):
            return first
        return self._numbers(several) if all(isinstance(x, float) for x in several) else None

    def _numbers(self, several: tuple[float, ...]) -> Node:
        """One for each line, at least as precise as an operator takes a number."""
        like = self._node.meta["val"]
        values = [x for x, size in zip(several, self._sizes, strict=True) for _ in range(size)]
        dtype = torch.promote_types(like.dtype, torch.float32)
        after = self._rank - 1 - self._dim
        return call(self._node, ops.numbers, values, after, dtype=dtype, device=like.device)


def _same(several: tuple[Any, ...]) -> Any:
    return several[0] if all(x is several[0] or x == several[0] for x in several) else None
