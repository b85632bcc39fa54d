"""Passes as data: their order, passes of a user, and stages that nobody knew of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from sparsify.passes.analyze import AnalyzeLayout
from sparsify.passes.base import Pass
from sparsify.passes.canonicalize import Canonicalize
from sparsify.passes.constants import Constants
from sparsify.passes.graphs import Graphs
from sparsify.passes.layout import Layout
from sparsify.passes.masks import PropagateMasks
from sparsify.passes.pack import Pack
from sparsify.passes.packing.packed import Packed
from sparsify.passes.partition import CUTS, Cut, Partition
from sparsify.passes.pipeline import Pipeline
from sparsify.passes.verify import Inspect
from torch import nn
from torch.fx import GraphModule

import sparsify
from sparsify import ConfigError
from tests.graph_text import IMAGE, captured, text

aten = torch.ops.aten


@dataclass(frozen=True)
class Swap(Pass):
    """One operator for another, in some graphs."""

    requires: ClassVar[tuple[str, ...]] = ("canonical",)

    old: torch._ops.OpOverload = aten.silu.default
    new: torch._ops.OpOverload = aten.relu.default

    def __call__(self, module: GraphModule) -> GraphModule:
        for node in module.graph.find_nodes(op="call_function", target=self.old):
            node.target = self.new
        module.recompile()
        return module


@dataclass(frozen=True)
class SwapInUpdates(Swap):
    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    graphs: ClassVar[tuple[str, ...]] = ("update",)


def test_a_pass_that_comes_too_early_is_refused() -> None:
    with pytest.raises(ConfigError, match="PropagateMasks requires layouts"):
        Pipeline((Canonicalize(), PropagateMasks((8, 8))))


def test_further_passes_run_as_early_as_they_can() -> None:
    layouts = AnalyzeLayout((Layout.image(IMAGE),))
    pipeline = Pipeline((Canonicalize(), layouts, PropagateMasks((8, 8)), Pack(), Partition()))
    longer = pipeline.including([SwapInUpdates(), Swap()])
    names = [step.name for step in longer.passes]
    assert names == [
        *("Canonicalize", "Swap", "AnalyzeLayout", "PropagateMasks", "Pack", "Partition"),
        "SwapInUpdates",
    ]
    assert str(longer).splitlines()[1] == "Swap: canonical -> "


@torch.no_grad()
def test_passes_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model before anything else, or of its updates alone; dumped as all are."""
    monkeypatch.setenv("SPARSIFY_DEBUG", str(tmp_path))
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model, relu = nn.Sequential(conv, nn.SiLU()).eval(), nn.Sequential(conv, nn.ReLU()).eval()
    x, mask = torch.randn(1, 3, 8, 8), torch.ones(8, 8, dtype=torch.bool)
    options = {"backend": "eager", "dense_above": 1.0}
    everywhere = sparsify.sparsify(model, passes=(Swap(),), **options)
    output, _ = everywhere.record(x)
    torch.testing.assert_close(output, relu(x))
    in_updates = sparsify.sparsify(model, passes=(SwapInUpdates(),), **options)
    output, baseline = in_updates.record(x)
    torch.testing.assert_close(output, model(x))
    torch.testing.assert_close(in_updates.update(baseline, x, mask=mask), relu(x))
    dumped = {path.name.split("_", 1)[1] for path in tmp_path.iterdir()}
    assert {"Swap_joint.py", "SwapInUpdates_update.py"} <= dumped


@dataclass(frozen=True)
class Reuse(Pass):
    """Declares the value of an activation as one that graphs may give and take."""

    requires: ClassVar[tuple[str, ...]] = ("packed",)
    ensures: ClassVar[tuple[str, ...]] = ("reuse",)

    def __call__(self, module: GraphModule) -> GraphModule:
        packed: Packed = module.meta["packed"]
        (node,) = (n for n in module.graph.nodes if n.name == "relu")
        forms = {"record": node, "update": packed.current(node)}
        module.meta["values"] = {"reused": {"reused.0": forms}}
        return module


REUSE = (
    Cut("dense key", "record", ("output", "reused")),
    Cut("dense reuse", "record", ("output",), takes=("reused",)),
    Cut("update key", "update", ("output", "reused")),
    Cut("update reuse", "update", ("output",), takes=("reused",)),
)


@torch.no_grad()
def test_a_key_and_a_reuse_form_of_graphs() -> None:
    """As reuse over steps needs them, from a pass and four more cuts alone."""
    pipeline = Pipeline(
        (
            *(Canonicalize(), AnalyzeLayout((Layout.image(IMAGE),)), Constants()),
            *(PropagateMasks((8, 8), dilate=0), Pack(), Reuse()),
            Partition(cuts=(*CUTS, *REUSE)),
        )
    )
    module = captured(lambda m, x: m.conv(m.conv(x).relu()) + x)
    graphs = pipeline(Graphs(module), Inspect())
    x, mask = torch.randn(IMAGE), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:6] = True
    values = {"input.0": x, "mask": mask}
    values |= graphs["record"].run(values) | graphs["plan"].run(values)
    values["input.0"] = edited = torch.where(mask, x + 1, x)
    for kind, stage in (("dense", "dense"), ("update", "update")):
        want = graphs[stage].run(values)["output.0"]
        made = graphs[f"{kind} key"].run(values)
        assert torch.equal(made["output.0"], want)
        later = {**values, **made, "input.0": edited + 0.5 * mask}
        reuse = graphs[f"{kind} reuse"]
        assert text(reuse.graph).count("conv") < text(graphs[stage].graph).count("conv")
        got = reuse.run(later)["output.0"]
        torch.testing.assert_close(got, want + 0.5 * mask)
