"""Which values are packed or recomputed from their operands, and which are remembered."""

from __future__ import annotations

from torch.fx import Node

from .layout import Layout
from .rules.base import aten, is_edited


def sources_pack(node: Node) -> bool:
    """False if some operand has its columns before its rows: then it is only known whole."""
    layouts = [arg.meta["layout"] for arg in node.all_input_nodes if is_edited(arg)]
    return all(layout is None or layout.grid is None or layout.packable for layout in layouts)


def can_recompute(node: Node) -> bool:
    """At the same positions, from operands that are packed too, and one of them on the grid."""
    if not (sources_pack(node) and _has_one_source(node)):
        return False
    layouts = [arg.meta["layout"] for arg in node.all_input_nodes if is_edited(arg)]
    around = {_around(x) for x in layouts if x is not None and x.grid is not None}
    return around == {_around(node.meta["layout"])}


def _around(layout: Layout) -> tuple[int, int, int]:
    space = layout.space
    return space.outer, space.before, space.after


def _has_one_source(node: Node) -> bool:
    """Recomputing through a sum of two maps would need both; then remembering it is smaller."""
    if node.target is aten.cat.default:
        return all(is_edited(arg) for arg in node.all_input_nodes)
    grids = [
        arg
        for arg in node.all_input_nodes
        if is_edited(arg) and isinstance(arg.meta["layout"], Layout) and arg.meta["layout"].grid
    ]
    return len(grids) == 1
