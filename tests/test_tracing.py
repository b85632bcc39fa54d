"""Updates in several threads, while another one captures or compiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from sparsify.codegen.emit import Compiled
from sparsify.codegen.operators import export, exporting
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from sparsify import sparsify
from tests.small import corner, small_inputs, small_unet

THREADS, MASK = 4, corner()


def tiny() -> nn.Module:
    conv, leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
    return nn.Sequential(conv, nn.GroupNorm(4, 16), nn.SiLU(), leave).eval()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@torch.no_grad()
def test_updates_while_another_thread_captures(backend: str) -> None:
    sparse, image = sparsify(tiny(), backend=backend, dense_above=1.0), small_inputs()[0]
    _, baseline = sparse.record(image)
    wanted = sparse.update(baseline, image + 1, mask=MASK)
    other, captured = sparsify(small_unet(), backend="eager"), Event()

    def capture() -> None:
        try:
            other.record(*small_inputs(size=8))
        finally:
            captured.set()

    def update() -> int:
        count = 0
        while not captured.wait(0.02):  # the interpreter is for the capture to use
            plan = sparse.plan(MASK)
            assert torch.equal(sparse.update(baseline, image + 1, mask=plan), wanted)
            count += 1
        return count

    with ThreadPoolExecutor(THREADS + 1) as pool:
        done = pool.submit(capture)
        counts = [pool.submit(update) for _ in range(THREADS)]
    done.result()
    assert all(count.result() > 0 for count in counts)


def test_an_export_is_of_its_thread() -> None:
    with export(), ThreadPoolExecutor(1) as pool:
        assert exporting() and not pool.submit(exporting).result()
    assert not exporting()


def graph(number: int) -> GraphModule:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * (number + 2)).sin()

    return symbolic_trace(Scale())


@pytest.mark.parametrize("shared", [True, False], ids=["one graph", "a graph each"])
def test_first_calls_do_not_mix(shared: bool) -> None:
    graphs = [Compiled(graph(0 if shared else i), {}, name="update") for i in range(THREADS)]
    chosen = [graphs[0 if shared else i] for i in range(THREADS)]
    start, x = Barrier(THREADS), torch.ones(3)

    def call(compiled: Compiled) -> Tensor:
        start.wait()
        result: Tensor = compiled(x)
        return result

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(call, chosen))
    for number, (compiled, result) in enumerate(zip(chosen, results, strict=True)):
        torch.testing.assert_close(result, (x * (2 if shared else number + 2)).sin())
        assert compiled.source.count("def call(") == 1
