"""What the passes know of a node: one record, to which each pass adds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparsify.codegen.nm.pattern import NM
from torch.fx import Node

from .layout import Layout, Unmatched

ANYWHERE = "weights"
"""The stage of weights and their views: every graph has its own."""


@dataclass(frozen=True)
class Facts:
    """Never changed: copies of a node may share it. :func:`note` gives a node another one."""

    edited: bool = False
    """Does an edited input reach it?"""
    varies: bool = False
    """Is it another value for other inputs?"""
    layout: Layout | None = None
    """What its axes mean; None for an edited value: nobody knows, so it is computed whole."""
    mask: Node | None = None
    """The plan node, bool, of its active sites; None: computed whole, if it is edited at all."""
    reason: str = ""
    """Why it is computed whole."""
    refusal: str = ""
    """Why the last rewrite declared for its operator does not apply."""
    stage: str = ""
    """Which graphs compute it: :data:`.partition.STAGES`, or ``ANYWHERE``."""
    dynamic: bool = False
    """Of a table: is its first size a number of active sites?"""
    reused: bool = False
    """May steps of a run take it over from others? Then nothing before it is read again."""
    recorded: Node | None = None
    """Of an input and a condition of the update: the record node that it stands for."""
    kept: NM | None = None
    """Of a weight [O, I, *taps]: what of it is no zero; None: all."""
    layer: str = ""
    """Of such a weight: the layer of the model that has the dense one as its parameter."""
    computes: Node | None = None
    """Of a node that the record stage has instead of one of the model: that one."""


_NOTHING = Facts()


def facts(node: Node) -> Facts:
    """What is known of ``node``."""
    known: Facts = node.meta.get("facts", _NOTHING)
    return known


def note(node: Node, **known: Any) -> None:
    """Adds to what is known of ``node``: fields of :class:`Facts`."""
    node.meta["facts"] = replace(facts(node), **known)


def is_constant(node: Node) -> bool:
    """Does it depend on weights alone?"""
    return facts(node).stage in (ANYWHERE, "constants")


def layout_of(node: Node) -> Layout:
    """The layout of an operand; without one nothing behind it can be packed."""
    layout = facts(node).layout
    if not isinstance(layout, Layout):
        raise Unmatched(f"the arrangement of {node.name} is unknown")
    return layout
