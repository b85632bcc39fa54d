"""N:M masks, their gradients, and models that have them: laws, switching, refusals."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sparsify.codegen.nm import nm_mask, nm_masked
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import sparsify
from sparsify import BaselineError, ConfigError, OperandError, SparseWeights
from sparsify.oracle import relative
from sparsify.weights import NM

from .agreement import ALLOWED, Example, above, exact_errors, fixed_errors
from .small import corner, small_inputs, small_unet

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def sparse_dm(weight: Tensor, n: int, m: int) -> Tensor:
    """SparseDM's mask [O, I, *taps]: inputs last, groups of m in that order, all but the first
    m - n of an ascending argsort of magnitudes."""
    last = weight.movedim(1, -1)
    groups = last.reshape(-1, m)
    small = groups.abs().argsort(dim=1, stable=True)[:, : m - n]
    return torch.ones_like(groups).scatter_(1, small, 0.0).view(last.shape).movedim(-1, 1)


@st.composite
def weights_(draw: st.DrawFn, v: int = 1) -> tuple[Tensor, int, int]:
    """A weight with many ties, n and m."""
    m = draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    n = draw(st.integers(1, m))
    taps = draw(st.sampled_from([(), (3,), (3, 3), (1, 1), (2, 1, 3)]))
    shape = v * draw(st.integers(1, 3)), m * draw(st.integers(1, 3)), *taps
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator)
    values = values if draw(st.booleans()) else (2 * values).round() / 2
    if len(taps) == 2 and draw(st.booleans()):
        values = values.to(memory_format=torch.channels_last)
    return values.to(draw(st.sampled_from(DTYPES))), n, m


@given(weights_())
def test_masks_are_those_of_sparse_dm(drawn: tuple[Tensor, int, int]) -> None:
    weight, n, m = drawn
    mask = sparse_dm(weight, n, m)
    assert torch.equal(nm_mask(weight, n, m), mask.bool())
    assert torch.equal(nm_masked(weight, n, m), weight * mask)
    assert nm_masked(weight, n, m).stride() == weight.stride()


@given(weights_(), st.sampled_from([0.0, 2e-4, 0.1]))
def test_gradients_are_those_of_sparse_dm(drawn: tuple[Tensor, int, int], decay: float) -> None:
    weight, n, m = drawn
    weight = weight.requires_grad_()
    grad = torch.randn_like(weight)
    nm_masked(weight, n, m, 1, decay).backward(grad)
    mask = sparse_dm(weight.detach(), n, m)
    assert weight.grad is not None
    assert torch.equal(weight.grad, grad + decay * (1 - mask) * weight.detach())


@given(st.sampled_from([2, 4, 16]), st.data())
def test_outputs_share_a_choice_by_their_squares(v: int, data: st.DataObject) -> None:
    weight, n, m = data.draw(weights_(v))
    blocks = weight.float().unflatten(0, (-1, v)).square().sum(1)
    mask = sparse_dm(blocks, n, m).repeat_interleave(v, 0)
    assert torch.equal(nm_mask(weight, n, m, v), mask.bool())


@given(weights_(), st.integers(1, 40), st.integers(1, 5))
def test_short_groups_count_as_if_zeros_filled_them(
    drawn: tuple[Tensor, int, int], m: int, v: int
) -> None:
    weight, n, _ = drawn
    n = min(n, m)
    more = [0] * (2 * weight.dim() - 4) + [0, -weight.shape[1] % m, 0, -weight.shape[0] % v]
    whole = nn.functional.pad(weight, more)
    inside = tuple(map(slice, weight.shape))
    assert torch.equal(nm_masked(whole, n, m, v)[inside], nm_masked(weight, n, m, v))
    kept = nm_mask(weight, n, m, v).float().sum(1)
    full, rest = divmod(weight.shape[1], m)
    assert (kept == full * n + min(n, rest)).all()


@given(weights_(), st.integers(1, 4))
def test_all_of_them_is_the_weight_itself(drawn: tuple[Tensor, int, int], v: int) -> None:
    weight, _, m = drawn
    bits = torch.int32 if weight.dtype == torch.float32 else torch.int16
    assert torch.equal(nm_masked(weight, m, m, v).view(bits), weight.view(bits))


def test_what_is_no_number_is_kept() -> None:
    weight = torch.tensor([[1.0, torch.nan, 2.0, torch.inf]])
    assert nm_mask(weight, 2, 4).tolist() == [[False, True, False, True]]


def test_torch_accepts_the_operator() -> None:
    weight = torch.randn(8, 8, 3, 3).to(memory_format=torch.channels_last)
    masked: Any = torch.ops.sparsify.nm_masked.default
    torch.library.opcheck(masked, (weight.requires_grad_(), 2, 4, 4, 2e-4))


@pytest.mark.parametrize("numbers", [(0, 4, 1), (5, 4, 1), (2, 4, 0)])
def test_numbers_that_mean_nothing(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(OperandError, match="0 < n <= m"):
        nm_mask(torch.randn(4, 8), *numbers)
    with pytest.raises(ConfigError, match="0 < n <= m"):
        SparseWeights(small_unet(), *numbers)


def pair_of_layers() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 8, 1)
    return nn.Sequential(*layers).eval()


def baked(weights: SparseWeights) -> nn.Module:
    """A plain model with the masked weights."""
    copy = deepcopy(weights)
    copy.remove(bake=True)
    return copy.model


PATTERNS = st.sampled_from([NM(2, 4), NM(1, 4), NM(4, 8), NM(7, 8), NM(1, 16), NM(2, 4, 8)])


@settings(deadline=None, max_examples=10)
@given(st.lists(PATTERNS, min_size=1, max_size=4))
@torch.no_grad()
def test_any_switch_leads_to_the_masked_model_and_back(patterns: list[NM]) -> None:
    plain, inputs = small_unet(), small_inputs()
    weights = SparseWeights(deepcopy(plain), 2, 4)
    for n, m, v in patterns:
        weights.use(n, m, v=v)
        expected = deepcopy(plain)
        for name in weights.layers:
            layer: Any = expected.get_submodule(name)
            layer.weight.mul_(nm_mask(layer.weight, n, m, v))
        assert torch.equal(weights.model(*inputs), expected(*inputs))
        assert torch.equal(baked(weights)(*inputs), expected(*inputs))
    weights.dense()
    assert not weights.layers
    assert torch.equal(weights.model(*inputs), plain(*inputs))


def test_dense_weights_need_no_operator() -> None:
    weights = SparseWeights(small_unet(), 2, 4)
    weights.use(4, 4)
    graph = torch.export.export(weights.model, small_inputs()).graph
    assert not any("sparsify" in str(node.target) for node in graph.nodes)


def test_removed_layers_are_plain_ones() -> None:
    plain = small_unet()
    weights = SparseWeights(deepcopy(plain), 2, 4)
    copy = deepcopy(weights)
    weights.remove()
    assert str(weights.model) == str(plain)
    pairs = zip(weights.model.named_parameters(), plain.named_parameters(), strict=True)
    for (name, ours), (wanted_name, wanted) in pairs:
        assert name == wanted_name and torch.equal(ours, wanted)
    assert not weights.layers and not weights.candidates
    assert copy.layers  # removing one leaves the other
    copy.model(*small_inputs())


def test_copies_and_files_have_the_state(tmp_path: Path) -> None:
    weights, inputs = SparseWeights(small_unet(), 2, 4), small_inputs()
    copy = deepcopy(weights)
    assert torch.equal(copy.model(*inputs), weights.model(*inputs))
    copy.use(1, 4)
    assert weights.layers["down"] == NM(2, 4)
    weights.use(3, 4, layers=["low.*"])
    copy.apply(weights.layers)
    assert torch.equal(copy.model(*inputs), weights.model(*inputs))
    save_file(weights.model.state_dict(), tmp_path / "weights.safetensors")
    other = SparseWeights(small_unet(seed=5), 2, 4)
    other.model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    other.apply(weights.layers)
    assert torch.equal(other.model(*inputs), weights.model(*inputs))


# Layers


def test_layers_by_rule() -> None:
    weights = SparseWeights(small_unet(), 2, 4)
    assert weights.layers == dict.fromkeys(weights.candidates, NM(2, 4))
    assert list(weights.layers) == [
        *("high.conv1", "high.conv2", "down", "low.conv1", "low.conv2"),
        *("qkv", "query", "context", "up.conv1", "up.conv2"),
    ]
    assert weights.refused["enter"] == "the first layer"
    assert weights.refused["leave"] == "the last layer"
    assert weights.refused["low.time"] == "an embedding"
    assert weights.refused["up.skip"] == "a skip connection"
    assert repr(weights) == "<SparseWeights of SmallUNet: 10 layers 2:4>"


def test_layers_by_name() -> None:
    weights = SparseWeights(small_unet(), include=["*.time", "low.*"], exclude="*.skip")
    assert list(weights.layers) == ["high.time", "low.conv1", "low.conv2", "low.time", "up.time"]
    assert weights.refused["low.skip"] == "excluded"
    assert weights.refused["down"] == "not included"


class _Odd(nn.Module):
    """Layers that cannot be sparse, or not by each pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 12)
        self.six = nn.Linear(6, 12)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(16, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.normed = weight_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.good = nn.Linear(8, 16)
        self.leave = nn.Linear(16, 8)


def test_layers_that_cannot() -> None:
    weights = SparseWeights(_Odd(), 2, 4, v=8)
    assert list(weights.layers) == ["attention.out_proj", "good"]
    reasons = {
        "six": "4 does not divide its inputs, 6",
        "depthwise": "all of its inputs, 1",
        "grouped": "v=8 does not divide the outputs of a group, 4",
        "up": "transposed",
        "normed": "parametrization already",
        "attention": "three projections",
    }
    for name, reason in reasons.items():
        assert reason in weights.refused[name]
    weights.use(2, 4, v=4)
    assert list(weights.layers) == ["grouped", "attention.out_proj", "good"]
    padded = SparseWeights(_Odd(), 2, 4, v=8, pad=True)
    assert list(padded.layers) == ["six", "attention.out_proj", "good"]
    six: Any = padded.model.get_submodule("six")
    assert (six.weight != 0).sum() == 4 * 12


def test_errors_name_the_layer_and_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"six cannot be 2:4: 4 does not .*, 6: pad=True"):
        SparseWeights(_Odd(), 2, 4, include=["six", "good"])
    with pytest.raises(ConfigError, match=r"include='up': up stays dense: a transposed"):
        SparseWeights(_Odd(), 2, 4, include="up")
    with pytest.raises(ConfigError, match=r"no layer of Linear can be 2:4: the first layer"):
        SparseWeights(nn.Linear(8, 8))
    weights = SparseWeights(_Odd(), 2, 4)
    with pytest.raises(ConfigError, match=r"six cannot be 2:8: 8 does not divide its inputs, 6"):
        weights.use(2, 8, layers="six")
    with pytest.raises(ConfigError, match=r"layers='gone': no linear layer or convolution"):
        weights.use(1, 4, layers="gone")
    with pytest.raises(ConfigError, match=r"'leave': leave stays dense: the last layer"):
        weights.apply({"leave": NM(2, 4)})
    with pytest.raises(ConfigError, match="parametrization already"):
        SparseWeights(weights.model)


# Captured and compiled


@pytest.fixture(scope="module")
def example() -> Example:
    """The small network with weights of several patterns."""
    model = small_unet()
    weights = SparseWeights(model, 2, 4)
    weights.use(2, 4, v=8, layers=["low.*", "qkv"])
    names = ("sample", "timestep", "context")
    return Example(model, dict(zip(names, small_inputs(), strict=True)), ("sample",))


def test_updates_agree_with_the_masked_model(example: Example) -> None:
    assert not above(exact_errors(example, corner(), ~corner()), ALLOWED)
    errors, _ = fixed_errors(example, corner())
    assert not above(errors, ALLOWED)


@torch.no_grad()
def test_a_switch_is_seen() -> None:
    weights, x = SparseWeights(pair_of_layers(), 2, 4, include="*"), torch.randn(1, 8, 12, 12)
    edited, mask = x.clone(), torch.zeros(12, 12, dtype=torch.bool)
    edited[..., :3, :3], mask[:3, :3] = 1.0, True
    sparse = sparsify.sparsify(
        weights.model, policy="exact", backend="eager", dense_share=0.0, dense_above=1.0
    )
    for switch in (lambda: weights.use(1, 4), lambda: weights.dense(layers="2"), weights.dense):
        _, before = sparse.record(x)
        switch()
        with pytest.raises(BaselineError, match=r"parametrizations\.weight\.0\.\w changed"):
            sparse.update(before, edited, mask=mask)
        wanted = baked(weights)
        output, baseline = sparse.record(x)
        assert relative(output, wanted(x)) < ALLOWED
        assert torch.equal(sparse(edited), wanted(edited))
        assert relative(sparse.update(baseline, edited, mask=mask), wanted(edited)) < ALLOWED


@torch.no_grad()
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_exports_have_the_masked_weights(format: Any, tmp_path: Path) -> None:
    weights, x = SparseWeights(pair_of_layers(), 2, 4, include="0"), torch.randn(1, 8, 8, 8)
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    sparse = sparsify.sparsify(weights.model, backend="eager")
    sparse.export(tmp_path / "folder", x, format=format)
    output, _ = sparsify.load(tmp_path / "folder").record(x)
    assert relative(output, baked(weights)(x)) < ALLOWED


def test_compiled_calls_follow_a_switch() -> None:
    weights, x = SparseWeights(pair_of_layers(), 2, 4, include="*"), torch.randn(2, 8, 8, 8)
    compiled = torch.compile(weights.model, backend="aot_eager", fullgraph=True)
    for switch in (lambda: None, lambda: weights.use(1, 4), weights.dense):
        switch()
        torch.testing.assert_close(compiled(x), weights.model(x))
        gradients = []
        for model in (compiled, weights.model):
            weights.model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([p.grad for p in weights.model.parameters()])
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_autocast(dtype: torch.dtype) -> None:
    weights, inputs = SparseWeights(small_unet(), 2, 4), small_inputs()
    with torch.autocast("cpu", dtype):
        output = weights.model(*inputs)
        assert torch.equal(output, baked(weights)(*inputs))
    output.float().square().sum().backward()
    layer: Any = weights.model.get_submodule("low.conv1")
    assert layer.parametrizations.weight.original.grad.dtype == torch.float32


def test_masks_can_be_kept_for_a_run() -> None:
    weights, inputs = SparseWeights(small_unet(), 2, 4), small_inputs()
    with parametrize.cached():
        assert torch.equal(weights.model(*inputs), baked(weights)(*inputs))
