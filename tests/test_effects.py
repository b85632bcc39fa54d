"""Capture keeps no state and leaves none: refused by name, or put back."""

from __future__ import annotations

import operator
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from sparsify import CaptureError, sparsify
from tests.nets.base import C, conv


class Stateful(nn.Module):
    """A convolution, and something that ``change`` does to the module at every call."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.conv, self.change = conv(), change
        self.step, self.table, self.seen = 0, None, [torch.zeros(3)]
        self.register_buffer("calls", torch.zeros(()))
        self.settings: Any = {"deep": [Settings()]}

    def forward(self, x: Tensor) -> Tensor:
        if self.change is not None:
            self.change(self, x)
        return self.conv(x)


class Settings:
    """An object of the user's."""

    def __init__(self) -> None:
        self.count = 0


def attribute(model: Any, x: Tensor) -> None:
    model.step += 1


def replaced(model: Any, x: Tensor) -> None:
    model.calls = model.calls + 1


def buffer(model: Any, x: Tensor) -> None:
    model.calls += 1


def through_data(model: Any, x: Tensor) -> None:
    model.calls.data.add_(1)


def parameter(model: Any, x: Tensor) -> None:
    model.conv.bias.add_(1)


def grown(model: Any, x: Tensor) -> None:
    model.seen.append(x.mean())


def in_a_list(model: Any, x: Tensor) -> None:
    model.seen[0].add_(1)


def in_an_object(model: Any, x: Tensor) -> None:
    model.settings["deep"][0].count += 1


def hidden(model: Any, x: Tensor) -> None:
    model.table = x if model.table is None else model.table + x


STATE = {
    attribute: "step",
    replaced: "calls",
    buffer: "calls",
    through_data: "calls",
    parameter: r"conv\.bias",
    grown: r"seen\[",
    in_a_list: r"seen\[0\]",
    in_an_object: r"settings\['deep'\]\[0\]\.count",
    hidden: "table",
}


@pytest.mark.parametrize("change", STATE, ids=lambda change: change.__name__)
@torch.no_grad()
def test_state_is_refused_by_name_and_put_back(change: Any) -> None:
    model = nn.Sequential(Stateful(change)).eval()
    own: Any = model[0]
    with pytest.raises(CaptureError, match=rf"Sequential changes 0\.{STATE[change]}.*every call"):
        sparsify(model, backend="eager").record(torch.randn(1, C, 8, 12))
    assert own.step == 0 and own.calls == 0 and own.table is None
    assert len(own.seen) == 1 and torch.equal(own.seen[0], torch.zeros(3))
    assert own.settings["deep"][0].count == 0


class Cached(nn.Module):
    """Keeps what it computed in a list of its caller's, as encoders of videos do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, cache: list[Tensor | None], other: dict[str, int]) -> Tensor:
        y = self.conv(x) if cache[0] is None else self.conv(x) + cache[0]
        cache[0] = y
        other["calls"] = other.get("calls", 0) + 1
        return y


@pytest.mark.parametrize("cache", [[None], [torch.zeros(1, C, 8, 12), None]])
@pytest.mark.parametrize("is_named", [False, True])
@torch.no_grad()
def test_what_is_put_into_containers_of_the_caller_is_refused(cache: Any, is_named: bool) -> None:
    given, other = list(cache), {}
    args = () if is_named else (given, other)
    kwargs = {"cache": given, "other": other} if is_named else {}
    sparse = sparsify(Cached().eval(), backend="eager")
    with pytest.raises(CaptureError, match=r"Cached sets cache\[0\], which its caller gave"):
        sparse.record(torch.randn(1, C, 8, 12), *args, **kwargs)
    assert all(map(operator.is_, given, cache)) and not other


def rotary(model: Any, x: Tensor) -> None:
    if model.table is None:
        model.table = torch.arange(x.shape[-1]) / 7
        model.register_buffer("later", torch.ones(1))
        model.settings["size"] = x.shape


def overwritten(model: Any, x: Tensor) -> None:
    """What the next call does not read is no state: a feature kept for whoever looks."""
    model.table = model.conv(x)


@pytest.mark.parametrize("change", [rotary, overwritten, None])
@torch.no_grad()
def test_tables_of_the_first_call_are_kept(change: Any) -> None:
    model, x = Stateful(change).eval(), torch.randn(1, C, 8, 12)
    output, _ = sparsify(model, backend="eager").record(x)
    torch.testing.assert_close(output, model(x))
    assert (type(model.table) is Tensor) is (change is not None)


def test_weights_made_by_hooks_are_no_state() -> None:
    with pytest.warns(FutureWarning):
        model = nn.Sequential(weight_norm(conv())).eval()
    sparsify(model, backend="eager").record(torch.randn(1, C, 8, 12))


class Previous(nn.Module):
    """Differences to the picture before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.before = conv(), None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.before is None else x - self.before
        self.before = x
        return self.conv(y)


def test_a_second_call_that_differs_is_refused() -> None:
    model = Previous().eval()
    with pytest.raises(CaptureError, match="set before"):
        sparsify(model, backend="eager").record(torch.randn(1, C, 8, 12))
    assert model.before is None


class Noisy(nn.Module):
    """Draws from all generators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.noise = conv(), 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.noise == 0.0:
            self.noise = random.random() + float(np.random.rand())
        return self.conv(x) + torch.randn(x.shape[-1])


def test_generators_stay_where_they_were() -> None:
    x = torch.randn(1, C, 8, 12)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    model = Noisy().eval()
    torch.manual_seed(3)
    with torch.no_grad():
        wanted = (model(x), torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    again = Noisy().eval()
    again.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    output, _ = sparsify(again, backend="eager").record(x)
    torch.testing.assert_close(output, wanted[0])
    assert torch.equal(torch.rand(1), wanted[1])


class Moody(nn.Module):
    """Control flow that depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.sum() > 0 else -y


def test_a_failed_capture_prints_nothing_and_leaves_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = torch.is_grad_enabled(), torch.compiler.is_exporting(), torch.compiler.is_compiling()
    with pytest.raises(CaptureError, match="Make control flow independent") as raised:
        sparsify(Moody().eval(), backend="eager").record(torch.randn(1, C, 8, 12))
    assert "".join(capfd.readouterr()) == "" and len(str(raised.value)) < 600
    after = torch.is_grad_enabled(), torch.compiler.is_exporting(), torch.compiler.is_compiling()
    assert before == after


def test_captures_in_threads() -> None:
    models = [nn.Sequential(conv(), nn.SiLU(), conv()).eval() for _ in range(6)]
    x, failures, same = torch.randn(1, C, 8, 12), list[Exception](), list[bool]()

    def record(model: nn.Module) -> None:
        try:
            with torch.no_grad():
                output, _ = sparsify(model, backend="eager").record(x)
                same.append(torch.allclose(output, model(x), atol=1e-5))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=record, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and same == [True] * 6
    assert not torch.compiler.is_exporting()


@torch.no_grad()
def test_the_model_can_be_called_while_it_is_captured() -> None:
    model, x = nn.Sequential(conv(), nn.SiLU(), conv()).eval(), torch.randn(1, C, 8, 12)
    sparse, wanted, mask = sparsify(model, backend="eager"), model(x), torch.ones(8, 12) > 0
    _, baseline = sparse.record(x)
    failures, done = list[Exception](), threading.Event()

    def call() -> None:
        while not done.is_set():
            try:
                with torch.no_grad():
                    torch.testing.assert_close(model(x), wanted)
                    torch.testing.assert_close(sparse.update(baseline, x, mask=mask), wanted)
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for width in (13, 14):
            sparse.record(torch.randn(1, C, 8, width))
    finally:
        done.set()
        thread.join()
    assert not failures


@torch.no_grad()
def test_functions_put_on_a_model_are_captured() -> None:
    """They go on calling the modules that they were made for; weights are the model's own."""
    model, x = nn.Sequential(conv(), nn.SiLU()).eval(), torch.randn(1, C, 8, 12)
    before = model[0].forward
    model[0].forward = lambda x: 2 * before(x)
    sparse = sparsify(model, backend="eager")
    torch.testing.assert_close(sparse.record(x)[0], model(x))
    model[0].weight.mul_(2)
    torch.testing.assert_close(sparse.record(x)[0], model(x))
