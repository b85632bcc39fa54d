"""What weights alone determine is a constant: not kept, packed, and made again with the weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparsify.codegen.prepack import prepack_conv
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

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


class Shrunk(nn.Module):
    """A parametrization: kernels resized."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.interpolate(weight, (3, 3), mode="bilinear")


def shrunk(layer: nn.Conv2d) -> nn.Conv2d:
    layer.weight = nn.Parameter(torch.randn(C, C, 5, 5) / 12)
    return register_parametrization(layer, "weight", Shrunk(), unsafe=True)


class All(nn.Module):
    """Of each kind one, in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        kinds = (weight_norm, spectral_norm, Lora, shrunk)
        self.layers = nn.Sequential(*(kind(nn.Conv2d(C, C, 3, padding=1)) for kind in kinds))
        self.last = Net(positions=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x).relu())


NETS = {
    "weight norm": lambda: Net(weight_norm),
    "spectral norm": lambda: Net(spectral_norm),
    "lora": lambda: Net(Lora),
    "resized kernel": lambda: Net(shrunk),
    "positions": lambda: Net(positions=True),
    "all": All,
}


def in_place(parameter: nn.Parameter) -> None:
    parameter.add_(0.1 * torch.randn_like(parameter))


def behind_its_back(parameter: nn.Parameter) -> None:
    """Counted by no version."""
    parameter.data.mul_(1.3)


def moved(parameter: nn.Parameter) -> None:
    parameter.data = 1.3 * parameter.data


CHANGES = (in_place, behind_its_back, moved)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """A picture, the edited one, and the mask."""
    torch.manual_seed(1)
    x, mask = torch.randn(1, C, *GRID), torch.zeros(GRID, dtype=torch.bool)
    mask[3:6, 4:8] = True
    return x, torch.where(mask, x + 1, x), mask


def wrapped(model: nn.Module, **config: Any) -> SparseModule:
    options = {"backend": "eager", "policy": "exact", "dense_share": 0.0, **config}
    return sparsify.sparsify(model.eval(), **options)


@pytest.mark.parametrize("name", [name for name in NETS if name != "all"])
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


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_graph_sees_changed_weights(name: str, change: Any) -> None:
    model = NETS[name]()
    sparse = wrapped(model)
    update_all(sparse)
    before = of_each_graph(sparse)
    for parameter in model.parameters():
        change(parameter)
    update_all(sparse)
    require_one_value(sparse)
    after = of_each_graph(sparse)
    assert all(after[key] is not value for key, value in before.items())  # captured once


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_replaced_parameters(name: str) -> None:
    model = NETS[name]()
    sparse = wrapped(model)
    update_all(sparse)
    for path, parameter in list(model.named_parameters()):
        *parent, own = path.split(".")
        new = nn.Parameter(1.1 * parameter.detach())
        setattr(model.get_submodule(".".join(parent)), own, new)
    update_all(sparse)
    require_one_value(sparse)


@torch.no_grad()
def test_buffers_are_sources_too() -> None:
    model = Net(spectral_norm)
    sparse = wrapped(model)
    update_all(sparse)
    for buffer in model.buffers():
        buffer.copy_(F.normalize(torch.randn_like(buffer), dim=0))
    update_all(sparse)


@torch.no_grad()
def test_constants_are_made_again_for_other_weights_alone() -> None:
    x, edited, mask = inputs()
    model = Net(weight_norm)
    sparse = wrapped(model)
    _, baseline = sparse.record(x)
    before = of_each_graph(sparse)
    sparse.update(baseline, edited, mask=mask)
    sparse.record(edited)
    after = of_each_graph(sparse)
    assert before and all(after[key] is value for key, value in before.items())


def update_all(sparse: SparseModule) -> None:
    """Record, update, commit, an update of what that left and a dense one see today's weights."""
    x, edited, mask = inputs()
    output, baseline = sparse.record(x)
    close(output, sparse(x))
    got, later = sparse.update(baseline, edited, mask=mask, commit=True)
    close(got, sparse(edited))
    everywhere = torch.ones(GRID, dtype=torch.bool)
    for one in (baseline, later):
        close(sparse.update(one, 2 * edited, mask=everywhere), sparse(2 * edited))


def close(got: Tensor, want: Tensor) -> None:
    """To rounding: up to six layers, each a sum of up to 9 * C products, in another order."""
    units = 6 * 2 * (9 * C) ** 0.5
    atol = units * torch.finfo(torch.float32).eps * float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0.0, atol=atol)


def of_each_graph(sparse: SparseModule) -> dict[tuple[str, str], Tensor]:
    """The constants that graphs read, by graph and name."""
    parts = sparse.graphs(inputs()[0]).parts
    return {
        (name, str(node.target)): getattr(part.module, str(node.target))
        for name, part in parts.items()
        for node in part.graph.find_nodes(op="get_attr")
        if str(node.target).startswith("_const_")
    }


def require_one_value(sparse: SparseModule) -> None:
    """In every graph a constant is the same tensor."""
    first: dict[str, Tensor] = {}
    for (_, name), value in of_each_graph(sparse).items():
        assert first.setdefault(name, value) is value, name


@pytest.mark.parametrize("name", NETS)
def test_no_graph_but_one_makes_constants(name: str) -> None:
    """Nothing else computes from weights alone; and what the model and a kernel read of one stems
    from one evaluation."""
    sparse, aten = wrapped(NETS[name]()), torch.ops.aten
    parts = sparse.graphs(inputs()[0]).parts
    views = (aten.view.default, aten.flatten.using_ints)
    for part in (part for own, part in parts.items() if own != "constants"):
        known = set(part.graph.find_nodes(op="get_attr"))
        for node in part.graph.nodes:
            sources = node.all_input_nodes
            if node.op == "call_function" and sources and known.issuperset(sources):
                assert node.target in views, node.format_node()
    require_one_value(sparse)


@pytest.mark.parametrize("name", [name for name in NETS if name != "positions"])
def test_what_is_made_of_weights_is_prepacked(name: str) -> None:
    """A constant of a constant, in the format of the kernel."""
    constants = wrapped(NETS[name]()).graphs(inputs()[0])["constants"].graph
    made = [n for n in constants.nodes if n.target is prepack_conv]
    behind = [n for n in made if n.all_input_nodes[0].op == "call_function"]
    assert len(behind) == (4 if name == "all" else 1)
    assert {n.kwargs["format"] for n in behind} == {"panels"}


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
    """Of each kind, with weights that have changed since."""
    x, edited, mask = inputs()
    model = All()
    sparse = wrapped(model, dense_above=1.0)
    sparse.record(x)
    for parameter in model.parameters():
        in_place(parameter)
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


@torch.no_grad()
def test_programs_of_one_model_share_them() -> None:
    """Of other batches and grids, also after the weights have changed; not those of a capture."""
    model, (x, _, _) = All(), inputs()
    sparse, calls = wrapped(model), (x, x.repeat(2, 1, 1, 1), F.interpolate(x, scale_factor=2.0))
    for _ in range(2):
        for call in calls:
            sparse.record(call)
        one, two, larger = (packed_of(sparse, call) for call in calls)
        assert len(one) > 5 and one == two
        assert len(larger - one) == 1  # positions are resized to another size
        next(model.layers[1].parameters()).mul_(1.1)


def packed_of(sparse: SparseModule, x: Tensor) -> set[int]:
    """Where the constants lie that updates read."""
    part = sparse.graphs(x)["update"]
    nodes = part.graph.find_nodes(op="get_attr")
    names = [node.target for node in nodes if node.target.startswith("_const_")]
    return {getattr(part.module, name).data_ptr() for name in names}


class Scaled(nn.Module):
    """By numbers of the default dtype, made of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.by = nn.Conv2d(C, C, 1), nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * (torch.linspace(-1, 1, C) * self.by).exp()[:, None, None]
        return y


@torch.no_grad()
def test_settings_of_torch_make_other_constants() -> None:
    sparse, (x, _, _) = wrapped(Scaled()), inputs()
    dtypes = []
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            output, _ = sparse.record(x)
            assert output.dtype == sparse(x).dtype
            dtypes.append(output.dtype)
        finally:
            torch.set_default_dtype(torch.float32)
    assert dtypes == [torch.float32, torch.float64, torch.float32]


class Beginning(nn.Module):
    """A constant that begins where a weight does, and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = torch.randn(2 * C, C, 3, 3) / 12
        self.begin = nn.Parameter(self.whole[:C])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.whole, padding=1)[:, :C], self.begin, padding=1)


@torch.no_grad()
def test_a_tensor_that_only_begins_as_a_weight_is_none() -> None:
    model, (x, edited, mask) = Beginning(), inputs()
    sparse = wrapped(model)
    for _ in range(2):
        for call, new in ((x, edited), (x.repeat(2, 1, 1, 1), edited.repeat(2, 1, 1, 1))):
            _, baseline = sparse.record(call)
            got = sparse.update(baseline, new, mask=mask)
            torch.testing.assert_close(got, model(new), rtol=1e-4, atol=1e-4)
        model.whole[C:].mul_(3)


@torch.no_grad()
def test_constants_of_former_weights_are_forgotten() -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.Conv2d(C, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    sparse, (x, _, _) = wrapped(model), inputs()
    for _ in range(5):
        sparse.record(x)
        for parameter in model.parameters():
            parameter.mul_(1.1)
    gc.collect()
    assert len(sparse._engine._shared._known) <= 3
