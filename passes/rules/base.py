"""What a packing rule is, and how the compiler finds the one for a node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from sparsify.codegen.geometry import Geometry
from torch.fx import Node

from ..facts import facts
from ..facts import layout_of as layout_of
from ..layout import Layout, Unmatched
from ..packing.items import leading
from ..packing.place import Place

aten = torch.ops.aten

R = TypeVar("R", bound="Rule")


class Plan(Protocol):
    """Adds nodes to the plan, each once."""

    def call(self, function: Callable[..., Any], *args: Any) -> Node: ...

    def grow(self, mask: Node, geometry: Geometry) -> Node: ...

    def union(self, masks: Iterable[Node]) -> Node: ...


class Rule:
    """How one family of operators behaves on packed values. Subclasses hold no state."""

    cheap = False
    """True if recomputing the value at a few sites costs less than remembering it."""

    def layout(self, node: Node) -> Layout:
        """Layout of the result; raises :class:`Unmatched` with the reason if it has none."""
        raise NotImplementedError

    def geometry(self, node: Node) -> Geometry | None:
        """Where output sites read input sites, for operators that move between sites."""
        return None

    def image(self, node: Node) -> Node:
        """What ``geometry`` or ``reached`` reads: the first operand, or one behind it."""
        return node.all_input_nodes[0]

    def moves(self, node: Node) -> tuple[tuple[Node, Geometry], ...]:
        """The operands whose rows and columns change their place in the picture, and how: crops,
        rolls, flips, joins."""
        return ()

    def reached(self, node: Node, mask: Node, plan: Plan) -> Node | None:
        """The output sites that read active ones of ``mask``, where no ``geometry`` tells."""
        return None

    def is_global(self, node: Node) -> bool:
        """True if one edited site can change every output site."""
        return False

    def emit(self, node: Node, place: Place) -> Node:
        """The packed result at the sites of ``place``."""
        raise NotImplementedError

    def emit_all(self, node: Node, place: Place) -> Node | None:
        """The result at all sites where that is better than the dense operator, else None."""
        return None


_RULES: dict[Any, Rule] = {}


def register(*packets: Any) -> Callable[[type[R]], type[R]]:
    """Class decorator: this rule handles these operator packets (``torch.ops.aten.conv2d``)."""

    def add(rule: type[R]) -> type[R]:
        for packet in packets:
            _RULES[packet] = rule()
        return rule

    return add


def find_rule(node: Node) -> Rule | None:
    """The rule for a call node; pointwise operators share one."""
    if node.op != "call_function":
        return None
    if isinstance(node.target, torch._ops.OpOverload):
        rule = _RULES.get(node.target.overloadpacket)
        if rule is None and torch.Tag.pointwise in node.target.tags:
            return _RULES["pointwise"]
        return rule
    return _RULES.get(node.target)


def argument(node: Node, name: str, default: Any = None) -> Any:
    """The value that ``node`` passes for the schema argument ``name``."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for index, parameter in enumerate(node.target._schema.arguments):
        if parameter.name == name:
            if index < len(node.args):
                return node.args[index]
            if name in node.kwargs:
                return node.kwargs[name]
            return parameter.default_value if parameter.has_default_value() else default
    return default


def source(node: Node, index: int = 0) -> Node:
    """The tensor argument ``index``, as a node."""
    arg = node.args[index]
    if not isinstance(arg, Node):
        raise Unmatched(f"argument {index} is not a tensor of the graph")
    return arg


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def permutation(node: Node) -> list[int] | None:
    """The order of axes that a permute or transpose asks for; None for other operators."""
    if node.op != "call_function":
        return None
    if node.target is aten.permute.default:
        return [dim % len(shape_of(node)) for dim in argument(node, "dims")]
    if node.target not in (aten.transpose.int, aten.t.default):
        return None
    rank = len(shape_of(node))
    first, second = argument(node, "dim0", 0) % rank, argument(node, "dim1", 1) % rank
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return order


def is_edited(arg: object) -> bool:
    """True for a node that an edited input reaches."""
    return isinstance(arg, Node) and facts(arg).edited


def image_layout(node: Node) -> Layout:
    """The layout of the first argument, which has to be an image [N, C, H, W] on a grid."""
    layout = layout_of(source(node))
    if len(layout.dims) != 4 or not layout.is_image:
        raise Unmatched("the input is not an image on a grid")
    require_items_first(layout)
    return layout


def require_items_first(layout: Layout) -> None:
    """Refuses values whose first axis does not begin with the items of the batch."""
    if leading(layout) != layout.items:
        raise Unmatched("the items of the batch do not come first")


def require_unedited(node: Node, *names: str) -> None:
    """Refuses a node whose parameters (weights, biases, masks) depend on the edit."""
    for name in names:
        if is_edited(argument(node, name)):
            raise Unmatched(f"its {name} depends on the edited input")


def draws(node: Node) -> bool:
    """Does the node draw random numbers? Attention does not unless it drops some out."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return all(argument(node, name, True) for name in ("train", "training", "dropout_p"))


def is_drawn(node: Node) -> bool:
    """Is its value drawn, alone or as one of several results?"""
    if node.target is operator.getitem:
        return is_drawn(node.all_input_nodes[0])
    return draws(node)


def is_pure(node: Node) -> bool:
    """Is it a constant where its operands are? An attribute, or what draws nothing."""
    if node.op == "get_attr":
        return True
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    return node.target is operator.getitem or isinstance(node.target, torch._ops.OpOverload)


def require_constant(node: Node, name: str) -> None:
    """Refuses a node of which a parameter is not made of weights alone."""
    stack, seen = [argument(node, name)], set[Node]()
    while stack:
        if (own := stack.pop()) not in seen:
            seen.add(own)
            stack.extend(own.all_input_nodes)
    if not all(map(is_pure, seen)):
        raise Unmatched(f"its {name} is no constant")


def pair(value: Any, default: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """An int list argument of one or two entries, as (y, x)."""
    if value is None or value == []:
        return default
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
