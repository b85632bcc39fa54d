"""Which recording is replayed, and on which values; a GPU replays real ones (``make gpu``)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from time import sleep
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from sparsify.codegen.cuda_graphs import Replayed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Launches(TorchDispatchMode):
    """A CUDA graph: what was launched inside, on these addresses; no Python runs again."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        self.launched.append((op, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for op, args, kwargs, result in self.launched:
            again = op(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    stand_ins: dict[str, Any] = {
        "CUDAGraph": Launches,
        "graph": lambda launches, pool, capture_error_mode: launches,
        "stream": lambda _: nullcontext(),
        "Stream": MagicMock(),
        "current_stream": MagicMock(),
        "graph_pool_handle": object,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.object(Tensor, "is_cuda", True, create=True))
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch.object(torch.cuda, name, stand_in))
        yield


def add(x: Tensor, y: Tensor | None, factor: int) -> tuple[Tensor]:
    return ((x if y is None else x + y) * factor,)


def copies(replayed: Replayed, *inputs: Any) -> int:
    """How many inputs a call copies."""
    with Launches() as launches:
        buffers = [replayed._buffer(i, (i,), x) for i, x in enumerate(inputs)]
    assert all(buffer.equal(x) for buffer, x in zip(buffers, inputs, strict=True))
    return sum(op is torch.ops.aten.copy_.default for op, *_ in launches.launched)


def test_new_and_overwritten_inputs_count() -> None:
    replayed, x, y = Replayed(add, 2), torch.ones(3), torch.ones(3)
    (first,) = replayed(x, y, 2)
    assert first.tolist() == [4, 4, 4]
    assert replayed(torch.zeros(3), y, 2)[0].tolist() == [2, 2, 2]
    y.add_(1)
    assert replayed(x, y, 2)[0].tolist() == [6, 6, 6]
    assert first.tolist() == [4, 4, 4], "results are the caller's own"
    assert len(replayed._recorded) == 1


def test_writes_that_nobody_counts() -> None:
    replayed, x, y = Replayed(add, 2), torch.ones(3), torch.ones(3)
    replayed(x, y, 1)
    x.data.fill_(5)
    y.numpy()[:] = 3
    assert replayed(x, y, 1)[0].tolist() == [8, 8, 8]


def test_shapes_and_constants_have_recordings_of_their_own() -> None:
    replayed = Replayed(add, 3)
    for size, y, factor in ((3, None, 2), (4, None, 2), (3, None, 3), (3, None, 2)):
        result = replayed(torch.ones(size), y, factor)[0]
        assert result.tolist() == [factor] * size
    assert len(replayed._recorded) == 3


def test_of_what_never_changes_a_buffer_is_filled_once() -> None:
    replayed, x, kept = Replayed(add, 1), torch.ones(3), torch.ones(3)
    assert copies(replayed, x, kept) == 2
    assert copies(replayed, x, kept) == 1
    assert copies(replayed, x, kept.clone()) == 2


def test_inputs_in_one_memory_have_one_buffer() -> None:
    """Until they part, which is another recording."""
    replayed, x = Replayed(add, 0), torch.ones(3)
    assert replayed(x, x.view(3), 1)[0].tolist() == [2, 2, 2]
    assert len(replayed._buffers) == 1
    assert replayed(x, torch.zeros(3), 1)[0].tolist() == [1, 1, 1]
    assert replayed(torch.zeros(3), x, 1)[0].tolist() == [1, 1, 1]
    assert len(replayed._recorded) == 2


def test_a_tensor_at_the_place_of_a_dead_one_is_copied() -> None:
    replayed, x = Replayed(add, 1), torch.zeros(3)
    for value in range(5):
        result = replayed(x, torch.full((3,), float(value)), 1)[0]
        assert result.tolist() == [value] * 3


def test_the_same_memory_lies_in_one_buffer() -> None:
    replayed, x = Replayed(lambda x, *kept: (x + kept[0] * 10 + kept[1] * 100,), 1), torch.ones(3)
    both = torch.full((2, 3), 2.0)
    assert replayed(x, both[0], both[0])[0].tolist() == [221] * 3
    assert len(replayed._buffers) == 2
    assert replayed(x, both[0], both[1] + 1)[0].tolist() == [321] * 3
    assert replayed(x, both[1] + 3, both[0])[0].tolist() == [251] * 3
    assert replayed(x, both[1], both[1])[0].tolist() == [221] * 3
    assert replayed(x, x, both[1])[0].tolist() == [211] * 3, "one of them may be the caller's"
    x.data.fill_(4)
    assert replayed(x, x, both[1])[0].tolist() == [244] * 3
    assert len(replayed._recorded) == 3 and len(replayed._buffers) == 3


def test_threads_take_turns_at_the_buffers() -> None:
    replayed, replay = Replayed(add, 2), Launches.replay
    replayed(torch.ones(3), None, 1)

    def slowly(launches: Launches) -> None:
        sleep(0.001)
        replay(launches)

    def call(value: int) -> bool:
        x = torch.full((3,), float(value))
        return all(replayed(x, None, 1)[0].equal(x) for _ in range(5))

    with patch.object(Launches, "replay", slowly), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))


def test_forgetting_records_again() -> None:
    scale = torch.ones(1)
    replayed = Replayed(lambda x: (x * scale,), 1)
    replayed(torch.ones(2))
    scale = torch.full((1,), 3.0)
    assert replayed(torch.ones(2))[0].tolist() == [1, 1], "the addresses are those of the recording"
    replayed.forget()
    assert not replayed._recorded and not replayed._buffers
    assert replayed(torch.ones(2))[0].tolist() == [3, 3]
