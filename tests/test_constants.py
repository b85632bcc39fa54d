"""What weights alone determine is a constant: not kept, packed, and made again with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import sparsify
from sparsify import SparseModule

C, GRID = 16, (16, 16)


class Net(nn.Module):
    """Convolutions whose weight, and positions whose size, are made of parameters."""

    def __init__(self, norm: Any = lambda layer: layer, positions: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = norm(nn.Conv2d(C, C, 3, padding=1)), nn.Conv2d(C, C, 1)
        self.places = nn.Parameter(torch.randn(1, C, 4, 4)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.places is not None:
            y = y + F.interpolate(self.places, x.shape[-2:], mode="bilinear")
        return self.second(F.silu(y))


class Lora(nn.Conv2d):
    """Merged at every call."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(C, C, 3, padding=1)
        self.load_state_dict(plain.state_dict())
        self.down, self.up = nn.Parameter(torch.randn(4, 9 * C)), nn.Parameter(torch.randn(C, 4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 0.5 * (self.up @ self.down).view(self.weight.shape)
        return F.conv2d(x, weight, self.bias, padding=1)


NETS = {
    "weight norm": lambda: Net(weight_norm),
    "spectral norm": lambda: Net(spectral_norm),
    "lora": lambda: Net(Lora),
    "positions": lambda: Net(positions=True),
}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """A picture, the edited one, and the mask."""
    torch.manual_seed(1)
    x, mask = torch.randn(1, C, *GRID), torch.zeros(GRID, dtype=torch.bool)
    mask[3:6, 4:8] = True
    return x, torch.where(mask, x + 1, x), mask


def wrapped(model: nn.Module, **config: Any) -> SparseModule:
    options = {"backend": "eager", "policy": "exact", "dense_share": 0.0, **config}
    return sparsify.sparsify(model.eval(), **options)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_baselines_keep_no_constants(name: str) -> None:
    x, edited, mask = inputs()
    sparse, plain = wrapped(NETS[name]()), wrapped(Net())
    output, baseline = sparse.record(x)
    _, of_plain = plain.record(x)
    assert baseline.nbytes == of_plain.nbytes and set(baseline.values) == set(of_plain.values)
    torch.testing.assert_close(output, sparse(x))
    got = sparse.update(baseline, edited, mask=mask)
    torch.testing.assert_close(got, sparse(edited), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_graph_sees_changed_weights(name: str) -> None:
    x, edited, mask = inputs()
    model = NETS[name]()
    sparse = wrapped(model)
    sparse.update(sparse.record(x)[1], edited, mask=mask)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    output, baseline = sparse.record(x)
    torch.testing.assert_close(output, model(x))
    got, later = sparse.update(baseline, edited, mask=mask, commit=True)
    torch.testing.assert_close(got, model(edited), rtol=1e-4, atol=1e-5)
    got = sparse.update(later, 2 * edited, mask=torch.ones(GRID, dtype=torch.bool))
    torch.testing.assert_close(got, model(2 * edited), rtol=1e-4, atol=1e-5)


def test_weights_behind_a_norm_are_packed() -> None:
    """For the custom kernel, by a fold of a fold: the update is that of the plain network."""
    x, *_ = inputs()
    updates = [wrapped(model).graphs(x)["update"].graph for model in (Net(weight_norm), Net())]
    normed, plain = ([n.target for n in u.nodes if n.op == "call_function"] for u in updates)
    assert normed == plain


def test_views_of_weights_and_draws_are_no_constants() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(C))

        def forward(self, x: Tensor) -> Tensor:
            noise = self.shift * torch.randn(C)
            return x + self.shift.view(1, C, 1, 1) + noise.view(C, 1, 1)

    x, *_ = inputs()
    assert not wrapped(Odd()).graphs(x)["constants"].outputs


def test_a_result_that_is_a_constant_is_the_callers() -> None:
    class Result(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, self.shift + 1

    x, edited, mask = inputs()
    model = Result()
    sparse = wrapped(model)
    (_, shift), baseline = sparse.record(x)
    shift.zero_()
    assert torch.equal(sparse.update(baseline, edited, mask=mask)[1], model.shift.detach() + 1)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@torch.no_grad()
def test_exports(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    x, edited, mask = inputs()
    model = Net(weight_norm)
    sparse = wrapped(model, dense_above=1.0)
    sparse.record(x)
    model.first.parametrizations.weight.original0.mul_(1.5)
    sparse.export(tmp_path / "net", x, format=format)
    loaded = sparsify.load(tmp_path / "net")
    output, baseline = loaded.record(x)
    torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)
    got = loaded.update(baseline, edited, mask=mask)
    torch.testing.assert_close(got, model(edited), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_constants_ignore_autocast() -> None:
    x, *_ = inputs()
    model = Net(Lora)
    sparse = wrapped(model)
    _, baseline = sparse.record(x)
    model.first.up.mul_(2)
    program = sparse._engine.program_of(baseline)
    with torch.autocast("cpu", torch.bfloat16):
        program._make_constants(program._state.weights())
    torch.testing.assert_close(sparse.record(x)[0], model(x))
