"""What a packing rule for your own operator needs; see ``docs/rules.md``."""

from .passes.layout import Layout, Unmatched
from .passes.packing.place import Place
from .passes.rules.base import Rule, argument, layout_of, register, shape_of, source

__all__ = [
    "Layout",
    "Place",
    "Rule",
    "Unmatched",
    "argument",
    "layout_of",
    "register",
    "shape_of",
    "source",
]
