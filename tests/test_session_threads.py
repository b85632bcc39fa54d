"""Several threads use one module: each has its own sessions, and nobody waits for a flag."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from sparsify import sparsify
from tests.small import corner, small_inputs, small_unet


def edit(number: int) -> tuple[Tensor, Tensor, Tensor]:
    image, *rest = small_inputs()
    return torch.where(corner(), image + number, image), *rest


def together(*functions: Callable[[], Any]) -> list[Any]:
    """The results of functions that run at once, each in a thread of its own."""
    start = Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        start.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(run, f) for f in functions]]


def test_a_session_takes_the_calls_of_its_own_thread() -> None:
    sparse = sparsify(small_unet(), backend="eager")
    after = edit(1)
    want = small_unet()(*after)
    with sparse.recording() as session:
        (outside,) = together(lambda: sparse(*after))
        sparse(*edit(0))
    assert torch.equal(outside, want) and len(session.calls) == 1
    with session.editing(corner()) as editing:
        (outside,) = together(lambda: sparse(*after))
        sparse(*edit(1))
    assert torch.equal(outside, want) and editing.position == 1


def test_tasks_of_one_thread_have_sessions_of_their_own() -> None:
    sparse = sparsify(small_unet(), backend="eager")

    async def record(number: int) -> int:
        with sparse.recording() as session:
            for _ in range(number):
                await asyncio.sleep(0)
                sparse(*edit(0))
        return len(session.calls)

    async def several() -> list[int]:
        return await asyncio.gather(record(1), record(3))

    assert asyncio.run(several()) == [1, 3]


def test_first_uses_at_once_make_one_program() -> None:
    sparse = sparsify(small_unet(), backend="eager")
    before, after = edit(0), edit(1)  # threads share torch's generator

    def sampled() -> Tensor:
        with sparse.recording() as session:
            sparse(*before)
        with session.editing(corner()):
            return sparse(*after)

    first, *others = together(*[sampled] * 4)
    assert all(torch.equal(first, other) for other in others)
    assert len(sparse._engine._by_key) == 1
    assert torch.equal(sparse(*edit(1)), small_unet()(*edit(1)))  # no mode is left behind
