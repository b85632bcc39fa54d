"""Compiled beside the process that runs: graphs as text, what compiled code takes, the cache, and
the swap."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen.background import emitted, worker
from sparsify.codegen.background.emitted import InBackground
from sparsify.codegen.background.graph_json import from_json, to_json
from sparsify.codegen.background.job import Job
from sparsify.codegen.background.operand import Operand
from sparsify.codegen.background.packages import Packages
from sparsify.codegen.errors import CompileError, SparsifyWarning
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from sparsify import SparseModule, sparsify

EPS = torch.finfo(torch.float32).eps


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.norm, self.wide = nn.GroupNorm(4, 16), nn.Linear(8, 16)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)) + self.wide(time)[:, :, None, None]
        return self.last(F.silu(hidden))


# Values stay below 5; sums of 9 * 16 products twice: 12 units each.
CLOSE = {"rtol": 0.0, "atol": 2 * 12 * 5 * EPS}


def drawn(seed: int = 0) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(seed)
    return Net().eval(), torch.randn(1, 3, 24, 24), torch.randn(1, 8)


def square(side: int) -> Tensor:
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[2 : 2 + side, 3 : 3 + side] = True
    return mask


def update_of(sparse: SparseModule, x: Tensor, time: Tensor) -> InBackground:
    """What runs updates, for graphs that were made for such calls."""
    program = sparse._engine.program(sparse._engine.bind((x, time), {}))
    found = program._emitted["update"]
    assert isinstance(found, InBackground)
    return found


def check(sparse: SparseModule, x: Tensor, time: Tensor, sides: tuple[int, ...] = (1, 7)) -> None:
    """Updates are those of graphs that run as they are."""
    plain = sparsify(sparse._engine.whole, backend="eager")
    (_, own), (_, other) = sparse.record(x, time), plain.record(x, time)
    for side in sides:
        edited = torch.where(square(side), x + 1, x)
        got = sparse.update(own, edited, time, mask=square(side))
        want = plain.update(other, edited, time, mask=square(side))
        torch.testing.assert_close(got, want, **CLOSE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SPARSIFY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that has the update of :class:`Net`, and what was told meanwhile."""
    folder, told = tmp_path_factory.mktemp("cache"), list[str]()
    before = os.environ["SPARSIFY_CACHE_DIR"]
    os.environ["SPARSIFY_CACHE_DIR"] = str(folder)
    model, x, time = drawn()
    sparse = sparsify(model)
    sparse.compile(x, time, progress=told.append)
    assert told == ["recording", "tracing", "compiling"]
    check(sparse, x, time)
    yield folder
    os.environ["SPARSIFY_CACHE_DIR"] = before


@torch.no_grad()
def test_another_program_finds_what_was_compiled(filled: Path) -> None:
    """With other weights, too: these are arguments. It serves every mask, after commits too."""
    model, x, time = drawn(1)
    sparse = sparsify(model)
    check(sparse, x, time)
    update = update_of(sparse, x, time)
    assert update._native is not None
    assert "sparsify" in update.source
    assert len(list(filled.glob("*.pt2"))) == 1
    _, baseline = sparse.record(x, time)
    edited = torch.where(square(5), x + 1, x)
    _, baseline = sparse.update(baseline, edited, time, mask=square(5), commit=True)
    got = sparse.update(baseline, x, time, mask=square(5))
    whole = sparsify(model, backend="eager")
    want = whole.update(whole.record(x, time)[1], x, time, mask=square(5))
    torch.testing.assert_close(got, want, **CLOSE)


@torch.no_grad()
def test_threads_share_what_was_compiled(filled: Path) -> None:
    model, x, time = drawn(5)
    sparse = sparsify(model, warn_dropped=False)
    check(sparse, x, time)
    _, baseline = sparse.record(x, time)

    def update(side: int) -> Tensor:
        return sparse.update(baseline, x + 1, time, mask=square(side))

    want = [update(side) for side in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        for got, own in zip(pool.map(update, [*range(1, 9)] * 20), want * 20, strict=True):
            assert torch.equal(got, own)


@torch.no_grad()
def test_compiled_code_that_fails_is_given_up(filled: Path) -> None:
    model, x, time = drawn(6)
    sparse = sparsify(model)
    check(sparse, x, time)
    native = update_of(sparse, x, time)._native
    assert native is not None
    native._weights.pop()
    check(sparse, x, time, (3,))
    with pytest.warns(SparsifyWarning, match="the update cannot be compiled and runs uncompiled"):
        check(sparse, x, time)
    assert update_of(sparse, x, time)._started  # nor is it looked for again


@torch.no_grad()
def test_weights_that_change_are_read_anew(filled: Path) -> None:
    model, x, time = drawn(2)
    sparse = sparsify(model)
    check(sparse, x, time)
    for parameter in model.parameters():
        parameter.mul_(0.5)
    check(sparse, x, time)
    model.last.weight = nn.Parameter(torch.randn_like(model.last.weight))
    check(sparse, x, time)
    assert update_of(sparse, x, time)._native is not None


@torch.no_grad()
def test_weights_of_another_layout_are_not_taken_for_the_compiled_ones(filled: Path) -> None:
    model, x, time = drawn(3)
    sparse = sparsify(model)
    check(sparse, x, time)
    stored = torch.empty_strided((16,), (2,)).copy_(model.norm.weight)
    model.norm.weight = nn.Parameter(stored)
    check(sparse, x, time)
    assert update_of(sparse, x, time)._native is None


@torch.no_grad()
def test_it_is_compiled_once_calls_have_taken_long_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call waits for it."""
    model, x, time_ = drawn()
    sparse = sparsify(model)
    check(sparse, x, time_)
    update = update_of(sparse, x, time_)
    assert not update._started
    monkeypatch.setattr(update, "_pays_after", 0.0)
    check(sparse, x, time_)
    assert update._started
    assert update._native is None
    deadline = time.monotonic() + 300
    while update._native is None and time.monotonic() < deadline:
        check(sparse, x, time_, (3,))
        time.sleep(0.2)
    assert update._native is not None
    check(sparse, x, time_)


@torch.no_grad()
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise SystemExit('no compiler here')", "no compiler here"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
    ],
)
def test_a_process_that_fails_costs_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str, tmp_path: Path
) -> None:
    model, x, time = drawn()
    sparse = sparsify(model)
    monkeypatch.setattr(emitted, "_COMMAND", ("-c", body))
    with pytest.raises(CompileError, match=f"the update cannot be compiled.*: {reason}"):
        sparse.compile(x, time)
    assert not list(folder.glob("*"))
    check(sparse, x, time)


@torch.no_grad()
def test_what_is_no_package_costs_a_warning(folder: Path) -> None:
    model, x, time = drawn()
    sparse = sparsify(model)
    check(sparse, x, time)
    job = update_of(sparse, x, time)._job
    assert job is not None
    with Packages(folder).making(job.key) as own:
        (own / "package.pt2").write_bytes(b"damaged")
    again = sparsify(model)
    with pytest.warns(SparsifyWarning, match="the update cannot be compiled and runs uncompiled"):
        check(again, x, time)


def test_a_worker_ends_with_its_parent() -> None:
    code = f"from {worker.__name__} import _end_with_parent; _end_with_parent()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) == 1


# -- what is compiled ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 8])
def test_what_is_traced_serves_any_number_of_sites(first: int) -> None:
    """And holds no size of the call that it was traced for."""
    model, x, time = drawn()
    sparse = sparsify(model, dilate=0, dense_above=1.0)
    call = sparse._engine.bind((x, time), {})
    program, (_, baseline) = sparse._engine.program(call), sparse.record(x, time)
    update, dynamic = program.graphs["update"], program.graphs.dynamic

    def operands(side: int) -> list[Any]:
        values = program.runtime.operands(baseline, call.like(program.signature), square(side))
        return [values[name] for name in update.inputs]

    sizes = {i: dynamic[name] for i, name in enumerate(update.inputs) if name in dynamic}
    update.module.recompile()
    job = Job.of(update.module, operands(first), sizes, None)
    traced, _ = worker.traced_job(Job.from_text(job.text))
    weights = [update.attributes()[name] for name in job.weights]
    for side in (1, 2, 24):
        given = operands(side)
        read = [given[i] for i in job.read]
        assert all(own.takes(value) for own, value in zip(job.operands, read, strict=False))
        torch.testing.assert_close(traced(*read, *weights), update.module(*given), **CLOSE)


ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.sampled_from([torch.float16, torch.strided, torch.channels_last, torch.device("cpu")])
    | st.just(Ellipsis) | st.builds(slice, st.integers(), st.none(), st.integers()),
    lambda own: st.lists(own, max_size=3) | st.lists(own, max_size=3).map(tuple)
    | st.dictionaries(st.text(), own, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(ARGUMENTS)
def test_arguments_come_back_as_they_were(argument: Any) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.add.Tensor, (x, argument), {"alpha": (x, [x])})
    graph.output((node,))
    again = from_json(to_json(graph))
    own = next(iter(again.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)))
    assert repr(own.args[1]) == repr(node.args[1])
    assert repr(own.kwargs) == repr(node.kwargs)
    assert again.python_code("self").src == graph.python_code("self").src


def local(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g, x: g.call_function(lambda x: x, (x,)), "has no attribute"),
        (lambda g, x: g.call_function(local, (x, object())), "object among its arguments"),
        (lambda g, x: g.get_attr("weight"), "it reads the attribute weight"),
    ],
)
def test_what_has_no_form_in_a_file(build: Callable[..., Any], reason: str) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output((build(graph, x),))
    with pytest.raises(CompileError, match=f"has no form in a file: .*{reason}"):
        to_json(graph)


SHAPES = st.lists(st.integers(2, 4), min_size=1, max_size=4)  # the strides of 1 say nothing


@given(st.data(), SHAPES)
def test_operands_take_what_is_like_them(data: st.DataObject, shape: list[int]) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    inverse = [order.index(axis) for axis in range(len(shape))]

    def stored(sizes: list[int]) -> Tensor:
        return torch.empty([sizes[axis] for axis in order]).permute(inverse)

    unknown = data.draw(st.none() | st.integers(0, len(shape) - 1))
    own = Operand.of(stored(shape), unknown)
    assert Operand.from_json(own.to_json()) == own
    assert own.takes(own.empty(lambda: 3))
    assert own.takes(stored(shape))
    for axis in range(len(shape)):
        longer = [size + (i == axis) for i, size in enumerate(shape)]
        assert own.takes(stored(longer)) == (axis == unknown)
    assert not own.takes(stored(shape).double())
    assert not own.takes(stored(shape)[None])
    wider = torch.empty([*shape[:-1], 2 * shape[-1]])[..., ::2]
    assert own.takes(wider) == (wider.is_contiguous() and own.takes(wider.contiguous()))


def test_no_plain_tensors_are_refused() -> None:
    for value in (3, torch.sparse_coo_tensor(size=(2, 2)), nn.Buffer(torch.ones(2)).to_sparse()):
        with pytest.raises(CompileError, match="is no plain tensor"):
            Operand.of(value)


def test_attributes_become_arguments() -> None:
    """And inputs that are not read are none, whatever they are."""
    graph = Graph()
    _, x, w = graph.placeholder("y"), graph.placeholder("x"), graph.get_attr("w")
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, w)),))
    module = GraphModule({"w": nn.Parameter(torch.tensor(3.0))}, graph)
    job = Job.of(module, (None, torch.tensor(2.0)), {}, None)
    assert (job.read, job.weights) == ((1,), ("w",))
    assert "input_1, weight_0" in job.module().code
    assert math.prod(job.module()(torch.tensor(2.0), torch.tensor(3.0))) == 6


# -- the cache -----------------------------------------------------------------------------------


def made(packages: Packages, key: str, size: int) -> None:
    with packages.making(key) as folder:
        (folder / "package.pt2").write_bytes(b"x" * size)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    packages = Packages(tmp_path / "cache", most_bytes=100)
    for place, key in enumerate("abc"):
        made(packages, key, 30)
        os.utime(tmp_path / "cache" / f"{key}.pt2", (place, place))
    assert packages.find("a") is not None
    made(packages, "d", 30)
    assert [path.stem for path in packages.all()] == ["c", "a", "d"]
    made(packages, "e", 200)  # the last one stays
    assert [path.stem for path in packages.all()] == ["e"]
    assert packages.clear() == 200
    assert packages.find("e") is None


def test_nothing_half_done_is_kept(tmp_path: Path) -> None:
    packages = Packages(tmp_path)
    with pytest.raises(KeyboardInterrupt), packages.making("key") as folder:
        (folder / "package.pt2").write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
