"""The vocabulary under inductor, with a number of sites that is not known: one compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sparsify.codegen import norms, opaque, ops
from sparsify.codegen.overlay_attention import key_bias
from torch import Tensor
from torch._dynamo.decorators import mark_unbacked
from torch._dynamo.utils import counters

WEIGHT = torch.linspace(-1, 1, 8)
KEYS = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, 1, 1, 5).index_fill(3, torch.tensor([2]), -10.0)


def attention(rows: Tensor, sites: Tensor) -> Tensor:
    query = rows.unflatten(2, (2, 4)).transpose(1, 2)
    return opaque.attention(query, KEYS[..., :4], KEYS[..., 4:], MASK)


def attention_on_cuda(rows: Tensor, sites: Tensor) -> Tensor:
    query = rows.unflatten(2, (2, 4)).transpose(1, 2)
    out: Tensor = torch.ops.sparsify.attention(query, KEYS[..., :4], KEYS[..., 4:], MASK)
    return out.transpose(1, 2).flatten(2)


def through(rows: Tensor, sites: Tensor) -> Tensor:
    kernel_map = torch.stack([sites, sites + 1], 1)
    return ops.through(kernel_map, sites.unsqueeze(1), rows.mT, sites)


OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda rows, sites: norms.rms_norm(rows, [8], WEIGHT, 1e-6),
    "attention": attention,
    "attention_on_cuda": attention_on_cuda,
    "cdist": lambda rows, sites: opaque.cdist(rows, KEYS[0], 2.0, None),
    "repeated": lambda rows, sites: ops.repeated(sites),
    "key_bias": lambda rows, sites: key_bias(sites, 20),
    "through": through,
    "matmul": lambda rows, sites: opaque.matmul(rows, KEYS[0, 0].mT),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_one_compilation(name: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(OPERATORS[name], fullgraph=True)
    for count in (7, 1, 3):
        rows, sites = torch.randn(2, 20, 8)[:, :count].clone(), torch.arange(count)
        mark_unbacked(rows, 1)
        mark_unbacked(sites, 0)
        torch.testing.assert_close(compiled(rows, sites), OPERATORS[name](rows, sites))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_rms_norm_is_that_of_torch(
    dtype: torch.dtype, eps: float | None, weight: Tensor | None
) -> None:
    x = torch.randn(3, 4, 8).to(dtype) * 1e-3
    weight = None if weight is None else weight.to(dtype)
    torch.testing.assert_close(
        norms.rms_norm(x, [8], weight, eps), torch.nn.functional.rms_norm(x, [8], weight, eps)
    )


@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_on_cuda(mask: Tensor | None) -> None:
    query, key, value = torch.randn(2, 2, 3, 4), KEYS[..., :4], KEYS[..., 4:]
    torch.library.opcheck(torch.ops.sparsify.attention.default, (query, key, value, mask))
    torch.testing.assert_close(
        torch.ops.sparsify.attention(query, key, value, mask),
        torch.nn.functional.scaled_dot_product_attention(query, key, value, mask),
    )
