"""Which recording is replayed, and on which values; a GPU replays real ones (``make gpu``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from sparsify.codegen.cuda_graphs import Replayed, _Recorded
from torch import Tensor


class Recording:
    """What a CUDA graph does: the same work again, from the same memory into the same memory."""

    def __init__(self, function: Any, buffers: list[Any]) -> None:
        self._work = lambda: function(*buffers)
        self.outputs = self._work()

    def replay(self) -> None:
        for old, new in zip(self.outputs, self._work(), strict=True):
            old.copy_(new)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    def record(self: Replayed, buffers: list[Any]) -> _Recorded:
        recording = Recording(self._function, buffers)
        return _Recorded(recording, recording.outputs)  # type: ignore[arg-type]

    on_cuda = patch.object(torch.Tensor, "is_cuda", True, create=True)
    with on_cuda, patch.object(Replayed, "_record", record):
        yield


def add(x: Tensor, y: Tensor | None, factor: int) -> tuple[Tensor]:
    return ((x if y is None else x + y) * factor,)


def test_new_and_overwritten_inputs_count() -> None:
    replayed, x, y = Replayed(add), torch.ones(3), torch.ones(3)
    (first,) = replayed(x, y, 2)
    assert first.tolist() == [4, 4, 4]
    assert replayed(torch.zeros(3), y, 2)[0].tolist() == [2, 2, 2]
    y.add_(1)
    assert replayed(x, y, 2)[0].tolist() == [6, 6, 6]
    assert first.tolist() == [4, 4, 4], "results are the caller's own"
    assert len(replayed._recorded) == 1


def test_shapes_and_constants_have_recordings_of_their_own() -> None:
    replayed = Replayed(add)
    for size, y, factor in ((3, None, 2), (4, None, 2), (3, None, 3), (3, None, 2)):
        result = replayed(torch.ones(size), y, factor)[0]
        assert result.tolist() == [factor] * size
    assert len(replayed._recorded) == 3


def test_what_a_buffer_holds_is_not_copied() -> None:
    replayed, x = Replayed(add), torch.ones(3)
    replayed(x, None, 1)
    with patch.object(torch.Tensor, "copy_", side_effect=AssertionError):
        buffer = replayed._buffer(0, x)
    assert buffer is not x and buffer.equal(x)


def test_inputs_in_one_memory_have_one_buffer() -> None:
    """Until they part, which is another recording."""
    replayed, x = Replayed(add), torch.ones(3)
    assert replayed(x, x.view(3), 1)[0].tolist() == [2, 2, 2]
    assert len(replayed._buffers) == 1
    assert replayed(x, torch.zeros(3), 1)[0].tolist() == [1, 1, 1]
    assert replayed(torch.zeros(3), x, 1)[0].tolist() == [1, 1, 1]
    assert len(replayed._recorded) == 2


def test_a_tensor_at_the_place_of_a_dead_one_is_copied() -> None:
    replayed = Replayed(add)
    for value in range(5):
        assert replayed(torch.full((3,), float(value)), None, 1)[0].tolist() == [value] * 3


def test_forgetting_records_again() -> None:
    scale = torch.ones(1)
    replayed = Replayed(lambda x: (x * scale,))
    replayed(torch.ones(2))
    replayed.forget()
    assert not replayed._recorded and not replayed._buffers
    scale = torch.full((1,), 3.0)
    assert replayed(torch.ones(2))[0].tolist() == [3, 3]
