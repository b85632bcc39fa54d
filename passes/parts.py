"""Parts of a model: which of its nodes steps of a sampling run may reuse, found from the graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

import torch
from sparsify.codegen.errors import ConfigError
from torch.fx import Node

from .facts import facts
from .layout import Grid
from .macs import macs
from .rules.base import argument, shape_of

aten = torch.ops.aten

PARTS = ("encoder", "deep", "blocks", "attention", "cross_attention")
Part = str | tuple[str, ...] | Callable[[Node], bool]
"""One of ``PARTS``, or "deep.N"; patterns for the names of modules; or what says of a node of the
graph whether it is reused."""

_ENCODER = 18 / 28
"""Of the blocks of a transformer, as Faster Diffusion has it for DiT."""


def require_part(part: Part) -> None:
    """Raises :class:`ConfigError` for what names no part."""
    if isinstance(part, str) and part not in PARTS and not re.fullmatch(r"deep\.\d+", part):
        raise ConfigError(
            f"reuse={part!r}: one of output, {', '.join(PARTS)}, deep.N, or patterns for names of "
            "modules as a tuple"
        )


def reused(nodes: Sequence[Node], part: Part) -> set[Node]:
    """Of the ``nodes`` that an edit reaches, in the order of the graph, those of ``part``. Raises
    :class:`ConfigError` for a model that has no such part.

    encoder: all up to the value that is joined with the first skip connection, or in a transformer
    the first blocks; a decoder is left that reads no picture (Faster Diffusion).
    deep: what lies on grids coarser than the picture's.
    deep.N: what is joined with the N-th skip connection, counted from the outermost (DeepCache).
    blocks: the longest run of residual branches.
    attention: all attention, with the projection behind it; cross_attention: where the keys are
    none of an edited value.
    """
    require_part(part)
    own = [node for node in nodes if node.op == "call_function"]
    if isinstance(part, str):
        found = _FINDERS[part.split(".")[0]](own, part)
    else:
        is_reused = part if callable(part) else _named(part)
        found = {node for node in own if is_reused(node)}
    if not found:
        raise ConfigError(f"reuse={part!r}: the model has no such part that an edit reaches")
    results = (node for node in own if node.target is operator.getitem)
    return found | {node for node in results if node.all_input_nodes[0] in found}


def closed(nodes: Sequence[Node], found: set[Node], others: Container[Node] = ()) -> set[Node]:
    """With what leads to them alone, and to none of ``others``."""
    found = set(found)
    for node in reversed(nodes):
        is_free = node.op == "call_function" and node not in others
        if is_free and node.users and all(user in found for user in node.users):
            found.add(node)
    return found


def _named(patterns: tuple[str, ...]) -> Callable[[Node], bool]:
    def is_reused(node: Node) -> bool:
        return any(fnmatchcase(name, p) for name in module_names(node) for p in patterns)

    return is_reused


def module_names(node: Node) -> list[str]:
    """Of the modules around the call that it is of, outermost first."""
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    names = [name.removeprefix("L['self'].").removeprefix("_model.") for name, _ in stack.values()]
    return [name for name in names if name]


# -- by grids -------------------------------------------------------------------------------------


def _deep(nodes: Sequence[Node], part: str) -> set[Node]:
    if "." in part:
        joins = [node for node in nodes if _joined(node, nodes)]
        number = int(part.split(".")[1])
        if number >= len(joins):
            raise ConfigError(f"reuse={part!r}: the model has {len(joins)} skip connections")
        return closed(nodes, {_joined(joins[-1 - number], nodes)[-1]})
    sizes, picture = _sizes(nodes, part)
    found = set[Node]()
    for node in nodes:
        sources = [arg for arg in node.all_input_nodes if facts(arg).edited]
        if sizes.get(node, picture) < picture or all(arg in found for arg in sources):
            found.add(node)
    return found


def _encoder(nodes: Sequence[Node], part: str) -> set[Node]:
    middle = _middle(nodes, part)
    reached = {middle}
    for node in nodes:
        if any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return {node for node in nodes if node not in reached or node is middle}


def _middle(nodes: Sequence[Node], part: str) -> Node:
    """What is joined with the first skip connection behind the coarsest grid; without any, the
    first value of the residual stream behind ``_ENCODER`` of the work of its blocks."""
    sizes = _sites(nodes, part)
    coarsest = min(sizes.values())
    first = next(i for i, node in enumerate(nodes) if sizes.get(node) == coarsest)
    for node in nodes[first:]:
        if joined := _joined(node, nodes):
            return joined[-1]
    run = _blocks(nodes, part)
    spent, whole = 0, sum(map(macs, run))
    for node in nodes:
        spent += macs(node) if node in run else 0
        if node in run and spent >= _ENCODER * whole and carried(node) is not None:
            return node
    raise ConfigError(f"reuse={part!r}: the model has neither skip connections nor blocks")


def _joined(node: Node, nodes: Sequence[Node]) -> list[Node]:
    """The edited values that ``node`` joins by their channels, in the order of the graph; empty if
    it is no join of two."""
    layout = facts(node).layout
    if node.target is not aten.cat.default or layout is None or not layout.is_image:
        return []
    if argument(node, "dim") % len(layout.dims) != 1:
        return []
    place = {each: i for i, each in enumerate(nodes)}
    joined = [arg for arg in node.all_input_nodes if arg in place]
    return sorted(joined, key=place.__getitem__) if len(joined) > 1 else []


def _sizes(nodes: Iterable[Node], part: Part) -> tuple[dict[Node, int], int]:
    """The sites of each value on a grid, and of the picture. Raises :class:`ConfigError` for a
    model of one grid, or of none."""
    sizes = _sites(nodes, part)
    graph = next(iter(sizes)).graph
    inputs = [node for node in graph.find_nodes(op="placeholder") if facts(node).edited]
    picture = max(_sites(inputs, part).values())
    if min(sizes.values()) == picture:
        raise ConfigError(f"reuse={part!r}: the model has one resolution only")
    return sizes, picture


def _sites(nodes: Iterable[Node], part: Part) -> dict[Node, int]:
    """How many each value on a grid has. Raises :class:`ConfigError` if none is on one."""
    sizes = {node: prod(grid) for node in nodes if (grid := _grid(node))}
    if not sizes:
        raise ConfigError(f"reuse={part!r}: no value that an edit reaches is on a grid")
    return sizes


def _grid(node: Node) -> Grid | None:
    layout = facts(node).layout
    return layout.grid if layout else None


# -- by operators ----------------------------------------------------------------------------------


def _attention(nodes: Sequence[Node], part: str) -> set[Node]:
    """With what weights alone make of what attention gave: projections, no gates."""
    every = [n for n in nodes if n.target is aten.scaled_dot_product_attention.default]
    if part == "cross_attention":
        every = [node for node in every if not facts(node.all_input_nodes[1]).edited]
    found = set(every)
    for node in nodes:
        others = [arg for arg in node.all_input_nodes if arg not in found]
        if len(others) < len(node.all_input_nodes) and not any(facts(x).varies for x in others):
            found.add(node)
    return found


# -- by the residual stream ------------------------------------------------------------------------


def _blocks(nodes: Sequence[Node], part: str) -> set[Node]:
    ends = [node for node in nodes if carried(node) is not None]
    passed = {carried(node) for node in ends}
    runs = [_run(nodes, end) for end in ends if end not in passed]
    return max(runs, key=lambda run: sum(map(macs, run)), default=set())


def _run(nodes: Sequence[Node], end: Node) -> set[Node]:
    """All between the value with which the residual stream to ``end`` begins, and ``end``."""
    start = stream_start(end, lambda node: True)
    if start is None:
        return set()
    behind, ahead = {start}, {end}
    for node in nodes:
        if any(arg in behind for arg in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user in ahead for user in node.users):
            ahead.add(node)
    return (behind & ahead) - {start}


def stream_start(end: Node, goes_through: Callable[[Node], bool]) -> Node | None:
    """The earliest value of the residual stream to ``end`` that has its shape, with additions
    between the two; it is followed as long as its values are ones to go through."""
    node: Node | None = end
    found, is_sum = None, False
    while node is not None and goes_through(node):
        is_sum |= node.target is aten.add.Tensor
        node = carried(node)
        if node is not None and is_sum and shape_of(node) == shape_of(end):
            found = node
    return found


def carried(node: Node) -> Node | None:
    """What a residual connection adds to, or a join or slice of tokens takes on; else None."""
    if node.target is aten.add.Tensor and len(node.all_input_nodes) == 2:
        first, second = node.all_input_nodes
        for x, branch in ((first, second), (second, first)):
            same = facts(x).edited and shape_of(x) == shape_of(node) and "alpha" not in node.kwargs
            if same and _reads(branch, x):
                return x
        return None
    layout = facts(node).layout
    if layout is None or layout.grid is None:
        return None
    if node.target in (aten.slice.Tensor, aten.cat.default) and layout.merged:
        is_along_sites = argument(node, "dim") % len(layout.dims) == layout.site_dim
        on_grid = [arg for arg in node.all_input_nodes if _grid(arg) == layout.grid]
        return on_grid[0] if is_along_sites and len(on_grid) == 1 else None
    return None


def _reads(branch: Node, x: Node) -> bool:
    """Is ``branch`` computed of ``x``?"""
    seen, stack = set[Node](), [branch]
    while stack:
        node = stack.pop()
        if node is x:
            return True
        for arg in node.all_input_nodes:
            if arg not in seen and not arg < x:  # in the order of the graph
                seen.add(arg)
                stack.append(arg)
    return False


_FINDERS: dict[str, Callable[[Sequence[Node], str], set[Node]]] = {
    "encoder": _encoder,
    "deep": _deep,
    "blocks": _blocks,
    "attention": _attention,
    "cross_attention": _attention,
}
