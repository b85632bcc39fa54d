"""What a graph depends on and does not read as an input: attributes, hooks, weights, adapters.

After any change of these an old baseline is refused, and a new one and its updates are the dense
model's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from sparsify.codegen import checksum
from sparsify.codegen.checksum import Memory
from torch import Tensor, nn

from sparsify import BaselineError, CaptureError, SparseModule, sparsify
from sparsify.state import State
from tests.small import corner


class Knobs(nn.Module):
    """Reads about everything that a module can hold; the convolutions' weights are prepacked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.drop = nn.Dropout2d(0.5)
        self.register_buffer("shift", torch.full((32, 1, 1), 0.25))
        self.scale = 1.0
        self.options = {"gain": [1.0, {"more": 1.0}], "pair": (1.0, [1.0])}
        self.flags = {"relu"}
        self.table = torch.full((32, 1, 1), -0.5)
        self.tables = [torch.full((32, 1, 1), 0.5)]
        self.array = np.full(4, 0.5)
        self.processor = SimpleNamespace(gain=1.0, inner=SimpleNamespace(gains=[1.0]))

    def forward(self, x: Tensor) -> Tensor:
        (gain, more), (one, (other,)) = self.options["gain"], self.options["pair"]
        gain = gain * more["more"] * one * other * self.scale * float(self.array[0])
        gain *= self.processor.gain * self.processor.inner.gains[0]
        y = self.first(x) * gain + self.shift + self.table + self.tables[0]
        return self.last(F.relu(y) if "relu" in self.flags else y)


def knobs() -> tuple[Knobs, SparseModule, Tensor]:
    torch.manual_seed(0)
    model = Knobs().eval()
    return model, sparsify(model, backend="eager", policy="exact"), torch.randn(1, 3, 16, 16)


@torch.no_grad()
def require_noticed(
    model: nn.Module, sparse: SparseModule, change: Callable[[], object], x: Tensor, *rest: Any
) -> str:
    """The law of this file for ``change``; returns why the old baseline is refused."""
    _, baseline = sparse.record(x, *rest)
    sparse.update(baseline, x, *rest, mask=corner())
    before = _output(model(x, *rest))
    change()
    assert (_output(model(x, *rest)) - before).abs().max() > 1e-3, "this change does nothing"
    with pytest.raises(BaselineError, match="record again") as refused:
        sparse.update(baseline, x, *rest, mask=corner())
    output, new = sparse.record(x, *rest)
    _assert_close(output, model(x, *rest))
    edited = torch.where(corner(), 0.5, x)
    _assert_close(sparse.update(new, edited, *rest, mask=corner()), model(edited, *rest))
    with pytest.raises(BaselineError, match=f"{refused.value}|changed"):
        sparse.update(baseline, x, *rest, mask=corner())
    return str(refused.value)


def _output(value: Any) -> Tensor:
    tensor: Tensor = value if isinstance(value, Tensor) else value[0]
    return tensor


def _assert_close(got: Any, want: Any) -> None:
    torch.testing.assert_close(_output(got), _output(want), rtol=1e-4, atol=1e-5)


def _double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def _twice(self: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(self, x) * 2


INNER = SimpleNamespace(gains=[1.0])


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


ATTRIBUTES: list[tuple[str, Callable[[Any], object]]] = [
    ("scale", lambda m: setattr(m, "scale", 3.0)),
    ("options.gain.0", lambda m: m.options["gain"].__setitem__(0, 3.0)),
    ("options.gain.1.more", lambda m: m.options["gain"][1].update(more=3.0)),
    ("options.pair.1.0", lambda m: m.options["pair"][1].__setitem__(0, 3.0)),
    ("options.gain.0", lambda m: setattr(m, "options", {**m.options, "gain": [3.0, {"more": 1}]})),
    ("flags", lambda m: m.flags.clear()),
    ("tensor attributes", lambda m: m.table.mul_(3)),
    ("tensor attributes", lambda m: m.tables[0].data.mul_(3)),
    ("tensor attributes", lambda m: setattr(m, "table", m.table * 3)),
    ("tensor attributes", lambda m: m.tables.__setitem__(0, m.table * 3)),
    ("tensor attributes", lambda m: m.array.fill(2.0)),
    ("processor.gain", lambda m: setattr(m.processor, "gain", 3.0)),
    ("processor.inner.gains.0", lambda m: m.processor.inner.gains.__setitem__(0, 3.0)),
    ("processor", lambda m: setattr(m, "processor", SimpleNamespace(gain=2, inner=INNER))),
    ("first._forward_hooks", lambda m: m.first.register_forward_hook(_double)),
    ("last._forward_pre_hooks", lambda m: m.last.register_forward_pre_hook(lambda s, x: x[0] * 2)),
    ("first.forward", lambda m: setattr(m.first, "forward", MethodType(_twice, m.first))),
    ("last", lambda m: setattr(m, "last", nn.Conv2d(32, 3, 3, padding=1))),
    ("first", lambda m: setattr(m.first, "__class__", Doubled)),
    ("weights", lambda m: setattr(m, "shift", m.shift + 1)),
    ("weights", lambda m: setattr(m.last, "weight", nn.Parameter(m.last.weight * 2))),
]


@pytest.mark.parametrize(("name", "change"), ATTRIBUTES)
def test_attributes(name: str, change: Callable[[Any], object]) -> None:
    model, sparse, x = knobs()
    reason = require_noticed(model, sparse, lambda: change(model), x)
    assert re.match(rf"the model's {name}(\.\d+)? changed after", reason)  # a hook's number


@torch.no_grad()
def test_training_mode_is_noticed() -> None:
    model, sparse, x = knobs()
    _, baseline = sparse.record(x)
    model.drop.train()
    with pytest.raises(BaselineError, match=r"drop.training changed.*: record again"):
        sparse.update(baseline, x, mask=corner())
    with pytest.raises(CaptureError, match="training mode"):
        sparse.record(x)
    model.eval()
    sparse.update(sparse.record(x)[1], x, mask=corner())


EQUAL: list[Callable[[Any], object]] = [
    lambda m: setattr(m, "scale", float("1.0")),
    lambda m: setattr(m, "options", copy.deepcopy(m.options)),
    lambda m: setattr(m, "flags", {"relu"}),
    lambda m: setattr(m, "table", m.table.clone()),
    lambda m: setattr(m, "array", m.array.copy()),
    lambda m: m.tables.__setitem__(0, m.tables[0].clone()),
    lambda m: m.first.register_forward_hook(_double).remove(),
    lambda m: m.train().eval(),
    lambda m: m.requires_grad_(False),
    lambda m: m.shift.mul_(1),
    lambda m: (delattr(m, "scale"), setattr(m, "scale", 1.0)),
    lambda m: m.state_dict(),
]


@torch.no_grad()
@pytest.mark.parametrize("write", EQUAL)
def test_equal_values_change_nothing(write: Callable[[Any], object]) -> None:
    model, sparse, x = knobs()
    output, baseline = sparse.record(x)
    write(model)
    _assert_close(sparse.update(baseline, x, mask=corner()), output)
    assert sparse.record(x)[1].key == baseline.key
    model.table.mul_(3)  # also where it is another tensor now than the captured one
    with pytest.raises(BaselineError, match="tensor attributes changed"):
        sparse.update(baseline, x, mask=corner())


class Caching(nn.Module):
    """Keeps a table from its first call on, and writes an equal one at each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.cache: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if channels not in self.cache:
            self.cache[channels] = torch.arange(channels).reshape(-1, 1, 1) / channels
        self.size = list(x.shape)
        return self.conv(x * self.cache[channels])


@torch.no_grad()
def test_caches_of_forward_are_no_change() -> None:
    model, x = Caching().eval(), torch.randn(1, 3, 16, 16)
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(x)
    model(x)
    assert sparse.record(x)[1].key == baseline.key
    sparse.update(baseline, x, mask=corner())


def _in_inference_mode(model: Knobs) -> None:
    with torch.inference_mode():
        model.last.weight.mul_(2)


def _step(model: Knobs) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1, foreach=True).step()


def _merge(model: Knobs) -> None:  # as PEFT does
    model.last.weight.data += torch.full_like(model.last.weight, 0.1)


def _numpy(model: Knobs) -> None:
    model.last.weight.detach().numpy()[:] *= 2


WRITES: list[Callable[[Any], object]] = [
    *(_in_inference_mode, _step, _merge, _numpy),
    lambda m: m.last.weight.data.mul_(2),
    lambda m: m.last.weight.data.neg_(),
    lambda m: setattr(m.last.weight, "data", m.last.weight.data * 2),
    lambda m: m.shift.data.mul_(9),
    lambda m: m.load_state_dict({n: t * 2 for n, t in m.state_dict().items()}),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("compiler", [True, False])
def test_weights(
    write: Callable[[Any], object], compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiler:
        monkeypatch.setattr(checksum, "_library", lambda: None)
    model, sparse, x = knobs()
    assert "weights changed" in require_noticed(model, sparse, lambda: write(model), x)


@torch.no_grad()
def test_other_dtypes_are_captured_again() -> None:
    model, sparse, x = knobs()
    _, baseline = sparse.record(x)
    model.double()
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(baseline, x, mask=corner())
    output, baseline = sparse.record(x.double())
    assert output.dtype == torch.float64
    sparse.update(baseline, x.double(), mask=corner())


@torch.no_grad()
def test_a_single_number_is_noticed_at_the_next_record() -> None:
    """Between records only a word of each page of a large weight is read."""
    model, sparse, x = knobs()
    model.last = nn.Conv2d(32, 16, 5, padding=2)  # 50 KiB
    _, baseline = sparse.record(x)
    spread = torch.zeros_like(model.last.weight).flatten()
    spread[1000] = 3
    model.last.weight.data += spread.view_as(model.last.weight)
    output, new = sparse.record(x)
    _assert_close(output, model(x))
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(baseline, x, mask=corner())
    edited = torch.where(corner(), 0.5, x)
    _assert_close(sparse.update(new, edited, mask=corner()), model(edited))


@torch.no_grad()
def test_restored_weights_are_the_recorded_ones() -> None:
    """Contents decide, not versions."""
    model, sparse, x = knobs()
    _, baseline = sparse.record(x)
    kept = copy.deepcopy(model.state_dict())
    model.last.weight.mul_(3)
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(baseline, x, mask=corner())
    model.load_state_dict(kept)
    edited = torch.where(corner(), 0.5, x)
    _assert_close(sparse.update(baseline, edited, mask=corner()), model(edited))


@torch.no_grad()
def test_refresh_and_reset() -> None:
    _, sparse, x = knobs()
    _, first = sparse.record(x)
    sparse.refresh()
    with pytest.raises(BaselineError, match=r"refresh\(\).* was called"):
        sparse.update(first, x, mask=corner())
    _, second = sparse.record(x)
    assert second.key == first.key
    sparse.update(second, x, mask=corner())
    sparse.reset()
    for old in (first, second):
        with pytest.raises(BaselineError, match=r"reset\(\) was called"):
            sparse.update(old, x, mask=corner())
    _, third = sparse.record(x)
    sparse.update(third, x, mask=corner())


@torch.no_grad()
def test_refresh_makes_constants_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if no checksum sees the change."""
    monkeypatch.setattr(Memory, "whole", lambda self: ())
    monkeypatch.setattr(Memory, "sampled", lambda self: ())
    model, sparse, x = knobs()
    _, baseline = sparse.record(x)
    sparse.update(baseline, x, mask=corner())
    model.last.weight.data.mul_(2)
    sparse.refresh()
    edited = torch.where(corner(), 0.5, x)
    _, baseline = sparse.record(x)
    _assert_close(sparse.update(baseline, edited, mask=corner()), model(edited))


class ScaledProcessor(AttnProcessor2_0):
    """With a list of scales, as IP-Adapter's have."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [0.5]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * self.scale[0]


@torch.no_grad()
def test_adapters_and_processors() -> None:
    """Of the real libraries, one after another: what each leaves is what the next one changes."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    for name in "ab":
        settings = {"init_lora_weights": False, "target_modules": ["to_q", "to_v", "conv1"]}
        unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, **settings), adapter_name=name)
    unet.eval().set_adapters("a")
    attention = unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1
    changes: list[list[Callable[[], object]]] = [
        [lambda: unet.set_adapters("b"), lambda: unet.set_adapters("a", 0.2)],
        [
            unet.disable_adapters,
            unet.enable_adapters,
            lambda: unet.set_attn_processor(ScaledProcessor()),
            lambda: attention.processor.scale.__setitem__(0, 2.0),
            lambda: unet.enable_freeu(0.9, 0.2, 1.2, 1.4),
        ],
        [unet.fuse_lora, unet.unfuse_lora, lambda: unet.delete_adapters("a")],
    ]
    sparse = sparsify(unet, backend="eager", policy="exact")
    x, *rest = torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 3, 16)
    edited, mask = torch.where(corner(8), 0.5, x), corner(8)
    _, baseline = sparse.record(x, *rest)
    for several in changes:
        for change in several:
            state = State(unet)
            assert state.change() is None
            change()
            assert state.change() is not None
        with pytest.raises(BaselineError, match=r"the model's .* changed after .*: record again"):
            sparse.update(baseline, x, *rest, mask=mask)
        output, baseline = sparse.record(x, *rest)
        _assert_close(output, unet(x, *rest))
        _assert_close(sparse.update(baseline, edited, *rest, mask=mask), unet(edited, *rest))


class Listed(nn.Module):
    """A weight that no name of the model leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weights = nn.Conv2d(3, 16, 3, padding=1), [torch.randn(16, 16, 3, 3) / 12]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.first(x), self.weights[0], padding=1)


def test_weights_beside_one_that_has_no_name() -> None:
    torch.manual_seed(0)
    model, x = Listed().eval(), torch.randn(1, 3, 16, 16)
    sparse = sparsify(model, backend="eager", policy="exact")
    require_noticed(model, sparse, lambda: model.first.weight.data.mul_(2), x)
    require_noticed(model, sparse, lambda: model.weights[0].data.mul_(2), x)


class KeepsItsLast(nn.Module):
    """Keeps what it computed last, and never reads what it kept before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = [self.conv(x)]
        return self.last[0] * 2


@torch.no_grad()
def test_what_each_call_sets_again_is_no_constant() -> None:
    model, x = KeepsItsLast().eval(), torch.randn(1, 3, 16, 16)
    sparse = sparsify(model, backend="eager", policy="exact", dense_above=1.0)
    _, baseline = sparse.record(x)
    edited = torch.where(corner(), x + 1, x)
    wanted = model(edited)  # which keeps other values than the recorded run
    _assert_close(sparse.update(baseline, edited, mask=corner()), wanted)


class Scaled(nn.Module):
    """Python numbers in a constant of weights, and in a tensor that capture makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.shifts = nn.Conv2d(3, 3, 3, padding=1), 2.0, [1.0, 2.0, 3.0]

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.conv.weight * self.scale, padding=1)
        return y + torch.tensor(self.shifts).view(3, 1, 1)


@pytest.mark.parametrize(("name", "value"), [("scale", 3.0), ("shifts", [1.0, 2.0, 4.0])])
@torch.no_grad()
def test_another_capture_does_not_take_old_baselines(name: str, value: Any) -> None:
    model, x = Scaled().eval(), torch.randn(1, 3, 16, 16)
    sparse = sparsify(model, backend="eager")
    _, baseline = sparse.record(x)
    setattr(model, name, value)
    sparse.record(x)
    with pytest.raises(BaselineError, match=f"{name}.*changed"):
        sparse.update(baseline, x, mask=corner())
