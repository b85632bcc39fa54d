"""What sites of a picture pay to some words: attention probabilities, found from a model's graph.

Words are rows of an input [N, L, C] that no edit reaches. They are attended to where keys are made
of them alone (cross-attention), and where they stand beside the picture among the keys (joint
attention of multimodal transformers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Interpreter, Node

from .baseline import Baseline
from .changed_words import Words, changed_rows
from .codegen.errors import ConfigError
from .passes.blend import by_site
from .passes.facts import facts
from .passes.graphs import NamedGraph
from .passes.layout import Layout, Space
from .passes.rules.base import shape_of
from .program import Program
from .runtime import inputs_of
from .signature import Call

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
Rows = Mapping[str, Tensor]
"""bool [N, L] by the name of an input: some of its rows."""


@dataclass(frozen=True, eq=False)
class Attention:
    """A node by which sites attend to the words of an input."""

    node: Node
    layout: Layout
    words: str
    """The name of the input."""
    space: Space | None
    """Of the keys of joint attention."""

    def columns(self, rows: Tensor) -> Tensor:
        """bool [N, K] of the keys, for some ``rows`` of the words."""
        if self.space is None:
            return rows
        before, own = self.space.before, rows.new_zeros(len(rows), self.space.sites)
        return torch.cat([rows[:, :before], own, rows[:, before:]], 1)

    def paid(self, operands: Sequence[Any], options: Mapping[str, Any], rows: Tensor) -> Tensor:
        """float [N, 1, H, W]: the sum over ``rows`` of the probabilities, in the mean over heads
        and frames. It is the attention to values that are 1 there, else 0."""
        query, key, value, *others = operands
        columns = self.columns(rows).repeat_interleave(len(query) // len(rows), 0)
        marks = columns.to(value.dtype).reshape(len(query), *[1] * (value.dim() - 3), -1, 1)
        marks = marks.expand(-1, *value.shape[1:])
        paid = _ATTENTION(query, key, marks, *others, **options)[..., :1]
        space, dim = self.layout.space, self.layout.site_dim
        layout = self.layout.replace(-1, 1).along(Space(space.grid, space.outer))
        own = by_site(layout, paid.narrow(dim, space.before, space.sites).float())
        return own.reshape(len(rows), -1, *space.grid).mean(1, keepdim=True)


def attentions(graph: NamedGraph) -> Iterator[Attention]:
    """All by which the sites of ``graph`` attend to words."""
    texts = {node: name for node, name in graph.named("input").items() if _is_text(node)}
    reach = {node: _reached(node) for node in texts}
    for node in graph.graph.find_nodes(op="call_function", target=_ATTENTION):
        key: Any = node.args[1]
        layout, of_keys, space = facts(node).layout, facts(key).layout, None
        words = shape_of(key)[-2]
        if facts(key).edited and _is_by_site(of_keys):
            space = of_keys.space
            words = space.before + space.after
        if not _is_by_site(layout) or (facts(key).edited and space is None):
            continue
        for text, name in texts.items():
            if key in reach[text] and words == shape_of(text)[1]:
                yield Attention(node, layout, name, space)


def _is_by_site(layout: Layout | None) -> TypeGuard[Layout]:
    """Do the sites stand where attention has its queries or keys?"""
    return layout is not None and layout.packable and layout.site_dim == len(layout.dims) - 2


def _is_text(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or facts(node).edited:
        return False
    return value.dim() == 3 and value.is_floating_point()


def _reached(text: Node) -> set[Node]:
    """All that is computed of it."""
    reached = {text}
    for node in text.graph.nodes:
        if any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return reached


def require_words(programs: Iterable[Program]) -> None:
    """Raises :class:`ConfigError` for models that attend to no words."""
    if not any(next(attentions(program.graphs["dense"]), None) for program in programs):
        raise ConfigError(
            "find='attention': in the graph of this model no site attends to the rows of an input "
            "[N, L, C], so that none tells where words are: take find='latents'"
        )


def attention_to_changes(
    program: Program, baseline: Baseline, call: Call, words: Sequence[Words]
) -> Tensor | None:
    """float [N, 1, H, W], at the sites of the model's inputs: what these pay in a call to the words
    that are new in it, and paid in the recorded one to those that are gone, in the mean over all
    attention to words; None if there is none. Runs nothing where no word changed."""
    found = list(attentions(program.graphs["dense"]))
    if not found:
        return None
    names = {one.words for one in found}
    leaves = inputs_of(call.leaves), inputs_of(baseline.inputs)
    texts = [{name: _without_padding(name, own) for name in names} for own in leaves]
    pairs = {name: changed_rows(texts[1][name], texts[0][name], words) for name in names}
    new, old = ({name: pair[side] for name, pair in pairs.items()} for side in (1, 0))
    size = baseline.shape[0], 1, *program.grid
    paid = torch.zeros(size, device=program.device)
    for values, rows in zip(leaves, (new, old), strict=True):
        if any(bool(own.any()) for own in rows.values()):
            paid = paid + _paid(program, found, values, rows)
    return paid


def _without_padding(name: str, values: Mapping[str, Any]) -> Tensor:
    """Words [N, L, C], with 0 for those that are 0 in a mask [N, L] among the inputs."""
    words: Tensor = values[name]
    for own in values.values():
        if isinstance(own, Tensor) and own.shape == words.shape[:2]:
            words = words * (own != 0)[..., None]
    return words


def _paid(
    program: Program, found: Sequence[Attention], values: Mapping[str, Any], rows: Rows
) -> Tensor:
    graph = program.graphs["dense"]
    looking = _Looking(graph, found, rows)
    with torch.no_grad(), program.as_captured():
        looking.run(*(values[name] for name in graph.inputs))
    sizes = (F.interpolate(own, program.grid, mode="bilinear") for own in looking.paid)
    return torch.stack(list(sizes)).mean(0)


class _Looking(Interpreter):
    """Runs a model, and looks at its attention to some rows of words."""

    def __init__(self, graph: NamedGraph, found: Sequence[Attention], rows: Rows) -> None:
        super().__init__(graph.module)
        self._found, self._rows = {one.node: one for one in found}, rows
        self.paid: list[Tensor] = []

    def run_node(self, n: Node) -> Any:
        if (one := self._found.get(n)) is not None:
            operands, options = self.fetch_args_kwargs_from_env(n)
            self.paid.append(one.paid(operands, options, self._rows[one.words]))
        return super().run_node(n)
