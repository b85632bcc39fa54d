"""Statistics and sums: precision, dtypes, and values far from zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparsify.codegen import norms
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify import Baseline, SparseModule, sparsify
from tests.agreement import Example, assert_right
from tests.rounding import assert_same
from tests.small import corner


def wrapped(model: nn.Module, x: Tensor) -> tuple[SparseModule, Tensor, Baseline]:
    options = {"backend": "eager", "dilate": 0, "dense_share": 0.0, "dense_above": 1.0}
    sparse = sparsify(model.eval(), **options)
    return sparse, *sparse.record(x)


def scattered(size: int, share: float) -> Tensor:
    return torch.rand(size, size, generator=torch.Generator().manual_seed(0)) < share


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [0.31, 0.62])
@torch.no_grad()
def test_half_precision_sums_in_single_precision(dtype: torch.dtype, share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 128, 3, padding=1), nn.GroupNorm(4, 128)).to(dtype)
    x, mask = torch.randn(1, 4, 64, 64).to(dtype), scattered(64, share)
    sparse, output, baseline = wrapped(model, x)
    few = 4 * torch.finfo(dtype).eps
    again = sparse.update(baseline, x, mask=mask)
    assert (again - output).abs().max() <= few * output.abs().max()
    edited = torch.where(mask, 4 * x, x)
    got = sparse.update(baseline, edited, mask=mask).double()
    conv = torch.where(mask, model[0](edited), model[0](x)).double()
    want = F.group_norm(conv, 4, *(p.double() for p in model[1].parameters()))
    want = torch.where(mask, want, output.double())
    assert (got - want).abs().max() <= few * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_single_precision_at_least(dtype: torch.dtype) -> None:
    _, mean, rstd = norms.group_norm(torch.ones(1, 4, 3, 3, dtype=dtype), None, None, 2, 1e-5)
    assert mean.dtype == rstd.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_values_far_from_zero(memory: torch.memory_format) -> None:
    """An update has the digits that the mean, 1000 deviations away, leaves to the values."""
    torch.manual_seed(0)
    x = (torch.randn(1, 16, 64, 64) + 1e3).contiguous(memory_format=memory)
    norm = nn.InstanceNorm2d(16, affine=True)
    sparse, output, baseline = wrapped(norm, x)
    digits = torch.finfo(torch.float32).eps * 1e3
    assert (output - norm.double()(x.double())).abs().max() <= 2 * digits
    sparse, output, baseline = wrapped(norm.float(), x)
    for share in (0.05, 0.6):
        mask = scattered(64, share)
        assert (sparse.update(baseline, x, mask=mask) - output).abs().max() <= 1e-5
        edited = torch.where(mask, x + torch.randn_like(x), x)
        want = torch.where(mask, F.instance_norm(edited.double()), output.double())
        assert (sparse.update(baseline, edited, mask=mask) - want).abs().max() <= 3 * digits


def test_large_maps_are_normed_in_parts() -> None:
    """As in one piece, in either memory order."""
    x, weight, bias = torch.randn(1, 8, 300, 200), torch.randn(8), torch.randn(8)
    want = torch.native_group_norm(
        x.double(), *(p.double() for p in (weight, bias)), 1, 8, 60000, 2, 0.1
    )
    for order in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            got = norms.group_norm(x.contiguous(memory_format=order), weight, bias, 2, 0.1)
        assert got[0].is_contiguous(memory_format=order)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


IN_DOUBLE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(1, dtype=torch.float64),
    "mean": lambda x: x.mean(1, keepdim=True, dtype=torch.float64),
    "sum of all": lambda x: x * x.sum(dtype=torch.float64).sigmoid(),
    "prod": lambda x: x.prod(1, dtype=torch.float64),
    "softmax": lambda x: x.softmax(1, dtype=torch.float64),
    "log_softmax": lambda x: F.log_softmax(x, 1, dtype=torch.float64),
    "cumsum": lambda x: x.cumsum(1, dtype=torch.float64),
    "cumprod": lambda x: x.cumprod(1, dtype=torch.float64),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", IN_DOUBLE)
def test_reductions_in_another_dtype(name: str) -> None:
    torch.manual_seed(0)
    assert_right(Example(Function(IN_DOUBLE[name]), {"x": torch.randn(1, 4, 6, 8)}))


class Noisy(nn.Module):
    """Noise times a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        return self.conv(x) + strength * torch.randn(4, *x.shape[2:])


@torch.no_grad()
def test_other_conditions_keep_the_drawn_noise() -> None:
    torch.manual_seed(0)
    x, model, mask = torch.randn(1, 4, 8, 8), Noisy(), scattered(8, 0.4)
    options = {"backend": "eager", "policy": "exact", "dense_share": 0.0, "any_step": True}
    sparse = sparsify(model.eval(), **options)
    output, baseline = sparse.record(x, torch.ones(1))
    noise = output - model.conv(x)
    everything = torch.ones_like(mask)
    got = sparse.update(baseline, x, torch.full((1,), 2.0), mask=everything)
    torch.testing.assert_close(got, model.conv(x) + 2 * noise)
    edited = torch.where(mask, x + 1, x)
    _, later = sparse.update(baseline, edited, torch.ones(1), mask=mask, commit=True)
    got = sparse.update(later, edited, torch.full((1,), 2.0), mask=everything)
    torch.testing.assert_close(got, model.conv(edited) + 2 * noise)
    assert_same(sparse.update(baseline, x, torch.ones(1), mask=~everything), output)
    small = sparse.restrict(baseline, mask)
    two = torch.full((1,), 2.0)
    assert_same(
        sparse.update(small, edited, two, mask=mask),
        sparse.update(baseline, edited, two, mask=mask),
    )


class Excited(nn.Module):
    """A gate by the mean of the map, behind a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.last = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        return self.last(y * torch.sigmoid(y.mean((2, 3), keepdim=True)))


@pytest.mark.parametrize("norm", ["updated", "baseline"])
@torch.no_grad()
def test_a_gate_behind_a_norm(norm: Any) -> None:
    """Of which only the copy is read that a commit needs."""
    sparse = sparsify(Excited().eval(), backend="eager", norm=norm, dense_above=1.0)
    x = torch.randn(1, 3, 16, 16)
    output, baseline = sparse.record(x)
    torch.testing.assert_close(sparse.update(baseline, x, mask=corner()), output)
