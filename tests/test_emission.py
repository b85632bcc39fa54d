"""Does what inductor emits for CUDA compile for real GPUs, and compute the update?

No GPU is needed: see :mod:`tests.gpu_free`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from sparsify.codegen import norms
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_leaves

from sparsify import sparsify
from sparsify.oracle import relative
from sparsify.signature import bind
from tests.small import corner, small_inputs, small_unet

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from tests.gpu_free import golden
from tests.gpu_free.as_on_cuda import as_on_cuda
from tests.gpu_free.emitted import compile_cubins
from tests.gpu_free.execute import execute
from tests.gpu_free.fake_cuda import emit_cuda

pytestmark = pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="there the compiler has a GPU to ask"
)
ALLOWED = 1e-5
"""Rounding in float32, relative to the largest value: sums are taken in another order."""
ARCHITECTURES = ((8, 0), (9, 0))


@dataclass(frozen=True)
class Case:
    """A graph, the axes of its inputs whose size is unknown, and inputs of several sizes."""

    module: GraphModule
    dynamic: dict[int, int]
    inputs: tuple[Sequence[Any], ...]
    most_rows: int | None = None


def toy() -> Case:
    """Rows at a table's sites through a layer, a norm and an activation, and put back."""
    torch.manual_seed(0)
    root = nn.Module()
    root.weight, root.bias = nn.Parameter(torch.randn(24, 16)), nn.Parameter(torch.randn(24))
    graph = Graph()
    names = ("rows", "sites", "base", "mean", "rstd")
    rows, sites, base, mean, rstd = (graph.placeholder(name) for name in names)
    weight, bias = graph.get_attr("weight"), graph.get_attr("bias")
    ramp = graph.call_function(torch.arange, (24.0,), {"device": torch.device("cpu")})
    taken = graph.call_function(torch.index_select, (rows, 1, sites))
    packed = graph.call_method("transpose", (graph.call_function(F.linear, (taken, weight)), 1, 2))
    normed = graph.call_function(norms.group_affine, (packed, mean, rstd, bias, ramp))
    active = graph.call_method("transpose", (graph.call_function(F.silu, (normed,)), 1, 2))
    graph.output((graph.call_method("index_copy", (base, 1, sites, active)), active, rows))

    def inputs(count: int) -> tuple[Tensor, ...]:
        sites = torch.randperm(64)[:count].sort().values
        statistics = torch.randn(2, 4), torch.rand(2, 4)
        return torch.randn(2, 64, 16), sites, torch.randn(2, 64, 24), *statistics

    return Case(GraphModule(root, graph), {1: 0}, (inputs(5), inputs(1)))


@torch.no_grad()
def update(model: nn.Module, *inputs: Tensor) -> Case:
    """The update graph of ``model`` as it is made on a GPU, for a few active sites and for many,
    and these from a restricted baseline."""
    image = inputs[0]
    masks = corner(image.shape[-1]), torch.rand(image.shape[2:]) < 0.4
    with as_on_cuda():
        options = {"dilate": 0, "dense_share": 0.0, "dense_above": 1.0}
        sparse = sparsify(model, backend="eager", **options)
        _, baseline = sparse.record(*inputs)
    program, cases = sparse._engine.program_of(baseline), []
    part = program.graphs["update"]
    for mask in masks:
        edited = torch.where(mask, torch.randn_like(image), image)
        call = bind(model, (edited, *inputs[1:]), {})
        for own in (baseline, sparse.restrict(baseline, mask)):
            values = program.runtime.operands(own, call, mask)
            cases.append(tuple(values[name] for name in part.inputs))
    assert len({tuple(table.shape for table in case) for case in cases}) > 1
    names, axes = enumerate(part.inputs), program.graphs.dynamic
    dynamic = {i: axes[name] for i, name in names if name in axes}
    part.module.recompile()
    return Case(part.module, dynamic, tuple(cases), program.graphs.most_rows)


def unet() -> Case:
    return update(small_unet(), *small_inputs(size=12))


def dit() -> Case:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=1,
        sample_size=16,
        num_embeds_ada_norm=10,
    )
    return update(model.eval(), torch.randn(1, 4, 16, 16), torch.tensor([3]), torch.tensor([1]))


class Residual(nn.Module):
    """Norm, activation, convolution, shift and residual, on an enlarged picture."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0)
        return x + self.conv(F.silu(self.norm(x))) + shift[:, :, None, None]


class SelfAttention(nn.Module):
    """Tokens of a picture through a norm, an attention and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = (
            part.unflatten(-1, (2, 16)).transpose(1, 2)
            for part in self.qkv(self.norm(tokens)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(y).transpose(1, 2).reshape(x.shape)


def residual() -> Case:
    torch.manual_seed(0)
    return update(Residual().eval(), torch.randn(1, 16, 8, 8), torch.randn(1, 16))


def attention() -> Case:
    torch.manual_seed(0)
    return update(SelfAttention().eval(), torch.randn(1, 32, 8, 8))


GOLDEN = (residual, attention)


WHOLE = [pytest.param(make, marks=pytest.mark.deep) for make in (unet, dit)]


@pytest.mark.parametrize("make", [toy, *WHOLE, *GOLDEN])
def test_emitted_code(make: Any) -> None:
    case = make()
    emission = emit_cuda(case.module, case.inputs[0], case.dynamic, case.most_rows)
    if make in GOLDEN and torch.__version__.startswith("2.13."):
        golden.check(make.__name__, emission.source)
    for architecture in ARCHITECTURES:
        assert all(compile_cubins(emission.source, architecture, first_only=True).values())
    results = execute(emission, case.module, *case.inputs)
    for inputs, result in zip(case.inputs, results, strict=True):
        with torch.no_grad():
            wanted = case.module(*inputs)
        for ours, theirs in zip(tree_leaves(result), tree_leaves(wanted), strict=True):
            assert relative(ours, theirs) <= ALLOWED
