"""Which values are packed or recomputed from their operands, and which are remembered."""

from __future__ import annotations

from torch.fx import Node

from ..facts import facts
from ..layout import Layout
from ..rules import find_rule
from ..rules.base import aten, is_edited, layout_of


def sources_pack(node: Node) -> bool:
    """False if some operand has its columns before its rows: then it is only known whole."""
    layouts = [facts(arg).layout for arg in node.all_input_nodes if is_edited(arg)]
    return all(layout is None or layout.grid is None or layout.packable for layout in layouts)


def follows(node: Node) -> bool:
    """Does the value come cheaply from its sources, and is it active where they are?

    Known once the sources have masks.
    """
    rule = find_rule(node)
    if rule is None or not rule.cheap or facts(node).reused or not can_recompute(node):
        return False
    return all(facts(source).mask is not None for source in grid_sources(node))


def can_recompute(node: Node) -> bool:
    """At the same positions, from operands that are packed too, and one of them on the grid."""
    if not (sources_pack(node) and _has_one_source(node)):
        return False
    layouts = [facts(arg).layout for arg in node.all_input_nodes if is_edited(arg)]
    around = {_around(x) for x in layouts if x is not None and x.grid is not None}
    return around == {_around(layout_of(node))}


def _around(layout: Layout) -> tuple[int, int, int]:
    space = layout.space
    return space.outer, space.before, space.after


def _has_one_source(node: Node) -> bool:
    """Recomputing through a sum of two maps would need both; then remembering it is smaller."""
    if node.target is aten.cat.default:
        grid = layout_of(node).grid
        return all(is_edited(arg) and layout_of(arg).grid == grid for arg in node.all_input_nodes)
    return len(grid_sources(node)) == 1


def grid_sources(node: Node) -> list[Node]:
    """The edited operands that lie on a grid."""
    return [arg for arg in node.all_input_nodes if is_edited(arg) and _is_on_grid(arg)]


def _is_on_grid(node: Node) -> bool:
    layout = facts(node).layout
    return layout is not None and layout.grid is not None
