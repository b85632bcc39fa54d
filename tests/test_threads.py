"""Several threads share a module, its programs and its plans; sessions are their own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import SparseModule, sparsify
from tests.rounding import assert_same

THREADS, UPDATES, SIZE = 8, 50, 10


class Tiny(nn.Module):
    """A convolution, a norm under a condition, attention, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm, self.time, self.qkv = nn.GroupNorm(2, 8), nn.Linear(2, 8), nn.Linear(8, 24)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = F.silu(self.norm(self.enter(x)) + self.time(time)[:, :, None, None])
        parts = self.qkv(y.flatten(2).transpose(1, 2)).chunk(3, -1)
        return self.leave(y + F.scaled_dot_product_attention(*parts).transpose(1, 2).view_as(y))


def module(policy: str = "fixed") -> SparseModule:
    torch.manual_seed(0)
    return sparsify(Tiny().eval(), backend="eager", policy=policy, dilate=1, dense_above=1.0)


def picture(seed: int, size: int = SIZE) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def mask(seed: int, size: int = SIZE) -> Tensor:
    return torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 0.2


TIME = torch.ones(1, 2)


def at_once(work: Callable[[int], list[Tensor]]) -> list[list[Tensor]]:
    """The results of all threads, which start together."""
    start = Barrier(THREADS)

    def run(thread: int) -> list[Tensor]:
        start.wait()
        return work(thread)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_threads_update_as_one_does() -> None:
    """Masks and plans of their own and shared ones; conditions that change; commits."""
    sparse = module()
    _, baseline = sparse.record(picture(0), TIME)
    shared = sparse.plan(mask(0))

    def work(thread: int) -> list[Tensor]:
        results, own = [], baseline
        for number in range(UPDATES):
            image, time = picture(1 + thread * UPDATES + number), TIME + number % 3
            plan = shared if number % 2 else mask(number)
            if number % 10 == 9:
                result, own = sparse.update(own, image, TIME, mask=plan, commit=True)
            else:
                result = sparse.update(own, image, time, mask=plan)
            results.append(result)
        return results

    serial = [work(thread) for thread in range(THREADS)]
    assert_same(at_once(work), serial)


def test_threads_record_for_the_first_time_as_one_does() -> None:
    """Half of them a signature of their own: captures meet updates."""

    def work(sparse: SparseModule, thread: int) -> list[Tensor]:
        size = SIZE + thread // 2 % 3 * (thread % 2)
        output, baseline = sparse.record(picture(thread, size), TIME)
        edits = (picture(100 + thread + i, size) for i in range(5))
        return [output, *(sparse.update(baseline, x, TIME, mask=mask(1, size)) for x in edits)]

    serial, together = module(), module()
    want = [work(serial, thread) for thread in range(THREADS)]
    assert_same(at_once(lambda thread: work(together, thread)), want)


@torch.no_grad()
def test_a_session_belongs_to_its_thread() -> None:
    """The others' calls are their own sessions', or the dense model's."""
    sparse, steps = module("exact"), 4
    dense = sparse(picture(0), TIME)
    begun = Barrier(THREADS)

    def work(thread: int) -> list[Tensor]:
        begun.wait()
        if thread % 2:
            return [sparse(picture(0), TIME) for _ in range(steps)]
        with sparse.recording() as session:
            begun_with = [sparse(picture(thread + i), TIME) for i in range(steps)]
        assert len(session.calls) == steps
        with session.editing(mask(thread)):
            for i in range(steps):
                sparse(picture(thread + i), TIME)
        return begun_with

    for thread, results in enumerate(at_once(work)):
        for i, result in enumerate(results):
            want = dense if thread % 2 else sparse(picture(thread + i), TIME)
            torch.testing.assert_close(result, want)
    assert_same(sparse(picture(0), TIME), dense)
