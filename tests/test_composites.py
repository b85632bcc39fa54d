"""Composite operators are taken apart as torch's own decompositions would, which trace again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparsify.passes.capture.composites import decompose, is_functional
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.networks import small
from tests.small import small_inputs, small_unet

COPIES = {torch.ops.aten.clone.default, torch.ops.aten.detach.default}


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(
            nn.InstanceNorm2d(4),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(self.norms(x), training=self.training)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT
        x = x + self.attention(x, x, x)[0]
        return self.layer(torch.einsum("bij,bkj->bik", x, x) @ x)


class Views(nn.Module):
    def forward(self, x: Tensor) -> Any:
        first, second = x.chunk(2, 1)
        whole = torch.cat(x.tensor_split(3, -1), -1)
        numbers = x.new_tensor([1.0, 2.0]) * torch.tensor([3.0, 4.0])
        turned = torch.movedim(first, 1, 2).contiguous().ravel()
        return whole.type_as(x), second.to(torch.float64), turned, x[..., [0, 1]] * numbers


PICTURE = torch.arange(4 * 36.0).reshape(1, 4, 6, 6).sin()


def operators(graph: torch.fx.Graph) -> list[Any]:
    called = [node for node in graph.nodes if node.op == "call_function"]
    return [
        (node.target, [value.shape for value in values], [value.stride() for value in values])
        for node in called
        if node.target not in COPIES and node.meta.get("val") is not None
        for values in [tree_leaves(node.meta["val"])]
    ]


@pytest.mark.parametrize("kind", [Norms, Tokens, Views, small_unet, "gaugan-256x512"])
@torch.no_grad()
def test_the_operators_are_those_of_torch(kind: Any) -> None:
    args: Any = small_inputs() if kind is small_unet else (PICTURE,)
    if isinstance(kind, str):
        (args, _), build = small()[kind].inputs(), small()[kind].build
    else:
        build = kind
    model = build()
    program = torch.export.export(model.eval(), args, strict=False)
    module = program.module(check_guards=False)
    assert is_functional(module.graph)
    decompose(module)
    module.graph.lint()
    module.recompile()
    want = program.run_decompositions({}).module(check_guards=False)
    for graph in (module.graph, want.graph):
        graph.eliminate_dead_code()
    assert operators(module.graph) == operators(want.graph)
    torch.testing.assert_close(tree_leaves(module(*args)), tree_leaves(model(*args)))


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        y[:, 0] = 2
        return y.relu_()


def test_a_graph_that_writes_is_none_of_these() -> None:
    program = torch.export.export(Writes(), (PICTURE,), strict=False)
    assert not is_functional(program.graph)
    assert is_functional(program.run_decompositions({}).graph)
