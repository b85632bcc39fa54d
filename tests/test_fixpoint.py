"""Rewrites are declared by operator, say why they refuse, and come to an end in any order."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen.errors import RewriteError
from sparsify.passes.analyze import AnalyzeLayout, interpret
from sparsify.passes.canonicalize import CANONICAL, Canonicalize
from sparsify.passes.capture import capture
from sparsify.passes.facts import facts
from sparsify.passes.layout import Layout, Unmatched
from sparsify.passes.rewrite import ResultOf, Rewrites, rewrite
from sparsify.passes.rewrites.base import call
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from sparsify import CaptureError, sparsify
from tests.graph_text import captured, text
from tests.networks import Recipe, recipes
from tests.rounding import assert_close, tolerance

aten = torch.ops.aten
FEWEST = settings(max_examples=settings.default.max_examples // 3)


def captured_recipe(recipe: Recipe) -> GraphModule:
    return capture(recipe.build(), recipe.inputs(), {}).module


@FEWEST
@given(recipe=recipes(), order=st.permutations(CANONICAL.members))
@torch.no_grad()
def test_any_order_comes_to_an_end(recipe: Recipe, order: list[Any]) -> None:
    """No rewrite needs another one to have been everywhere before; a second run does nothing."""
    canonical = Canonicalize(Rewrites(tuple(order)))
    module = canonical(captured_recipe(recipe))
    nodes = list(module.graph.nodes)
    inputs = recipe.inputs(1)
    allowed = tolerance(recipe, inputs)
    assert_close(module(*inputs), tree_leaves(recipe.build()(*inputs)), allowed)
    assert list(canonical(module).graph.nodes) == nodes


@FEWEST
@given(recipe=recipes())
@torch.no_grad()
def test_layouts_are_known_after_one_analysis(recipe: Recipe) -> None:
    """Of the graph as it then is: another interpretation finds the same."""
    module = Canonicalize()(captured_recipe(recipe))
    analyze = AnalyzeLayout((Layout.image(recipe.inputs()[0].shape), None, None))
    inputs = recipe.inputs(1)
    before, allowed = module(*inputs), tolerance(recipe, inputs)
    try:
        nodes = list(analyze(module).graph.nodes)
    except CaptureError:  # draws random numbers by edited values
        return
    known = [deepcopy(facts(node).layout) for node in nodes]
    for node in nodes:
        if node.op != "output":
            interpret(node)
    assert [facts(node).layout for node in nodes] == known
    assert list(analyze(module).graph.nodes) == nodes
    assert_close(module(*inputs), before, allowed)


@rewrite(aten.relu.default)
def again(node: Node) -> Node:
    """relu -> relu."""
    return call(node, aten.relu.default, node.args[0])


@rewrite(aten.relu)
def clamped(node: Node) -> Node:
    """relu -> clamp_min, of few rows."""
    new = call(node, aten.clamp_min.default, node.args[0], 0)
    if node.meta["val"].shape[2] > 4:
        raise Unmatched("there are many rows")
    return new


def test_endless_rewrites_are_named() -> None:
    with pytest.raises(RewriteError, match=r"'again' never comes to an end at relu.*Unmatched"):
        Canonicalize(Rewrites((again,)))(captured(lambda m, x: x.relu()))


def test_a_pass_takes_further_rewrites() -> None:
    mine = CANONICAL + Rewrites((clamped,))
    assert str(mine).endswith("clamped (aten.relu): relu -> clamp_min, of few rows.")
    graph = Canonicalize(mine)(captured(lambda m, x: F.avg_pool2d(x, 2).relu())).graph
    assert text(graph).endswith("clamp_min_default = clamp_min(avg_pool2d)")


def test_a_refusal_leaves_its_reason_and_nothing_else() -> None:
    graph = Canonicalize(Rewrites((clamped,)))(captured(lambda m, x: x.relu())).graph
    assert text(graph) == "relu = relu(x)"
    assert [facts(node).refusal for node in graph.nodes][1] == "clamped: there are many rows"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: F.fold(F.unfold(x, 3), (8, 8), 3), "(fold: blocks do not stand side by side)"),
        (lambda x: x.norm(3.0, 1, True) + x, "(vector_norm: the norm is not the Euclidean one)"),
    ],
)
def test_fallbacks_say_which_form_they_lack(
    function: Callable[[Tensor], Tensor], reason: str
) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    sparse = sparsify(Model().eval(), backend="eager", dense_share=0.0)
    sparse.graphs(torch.randn(1, 4, 8, 8))
    assert any(reason in node.reason for node in sparse.report())


def test_results_are_matched_by_what_they_are_results_of() -> None:
    declared = {key for own in CANONICAL.members for key in own.operators}
    assert ResultOf(aten.chunk) in declared
    module = captured(lambda m, x: x.chunk(2, 1)[1])
    part = next(node for node in module.graph.nodes if node.name.startswith("getitem"))
    assert [own.name for own in CANONICAL.matching(part)] == ["part"]
    assert not CANONICAL.matching(module.graph.find_nodes(op="placeholder")[0])


@pytest.mark.parametrize(
    ("pads", "own", "padding"),
    [
        ((1, 1, 2, 2), 0, [2, 1]),
        ((1, 1), (1, 1), [1, 2]),
        ((0, 1, 0, 1), 0, None),  # uneven
        ((-1, -1, 1, 1), 0, None),  # crops
        ((3, 3, 3, 3), 0, None),  # wider than the window
        ((0, 0, 0, 0, 1, 1), 0, None),  # channels
    ],
)
@torch.no_grad()
def test_even_zero_pads_are_the_convolutions_own(
    pads: tuple[int, ...], own: Any, padding: list[int] | None
) -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        x = F.pad(x, pads)
        return F.conv2d(x, torch.ones(2, x.shape[1], 5, 5), padding=own)

    module = Canonicalize()(captured(padded))
    conv = next(n for n in module.graph.nodes if n.target is aten.conv2d.default)
    assert ("pad_default" in text(module.graph) or "pad(" in text(module.graph)) == (not padding)
    if padding is not None:
        assert conv.args[4] == padding
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(module(x)[0], padded(None, x))


def test_pads_of_other_values_stay() -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        return m.conv(F.pad(x, (1, 1, 1, 1), value=2.0)) + m.conv(F.pad(x, [1] * 4, "reflect"))

    assert text(Canonicalize()(captured(padded)).graph).count("= pad(") == 2
