"""One CUDA graph for each set of sizes: an update is then a single launch.

``torch.compile(mode="reduce-overhead")`` records no graph where a size is unknown to the
compiler, and the number of active sites is; padded tables (:mod:`.tables`) make it one of few.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_WARM_UPS = 2  # compiles, tunes and fills the allocator, none of which may happen in a capture


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    outputs: Any


class Replayed:
    """``function(*inputs)``, recorded at the first call with inputs of these shapes.

    Inputs are copied into buffers that all recordings share, and results out of them; an input
    that a buffer holds already is not copied again, and inputs in one memory have one buffer.
    All tensors have to be on one CUDA device, else the function is called as it is.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.forget()

    def forget(self) -> None:
        """Drops the recordings, which read the weights where they stood."""
        self._recorded: dict[Hashable, _Recorded] = {}
        self._buffers: dict[Hashable, Tensor] = {}
        self._held: dict[Hashable, tuple[weakref.ref[Tensor], int | None]] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Any) -> Any:
        if not all(x.is_cuda for x in inputs if isinstance(x, Tensor)):
            return self._function(*inputs)
        kinds = tuple(_kind(x) for x in inputs)
        first = _first_places(inputs, kinds)
        key, buffers = (kinds, first), list[Any]()
        for index, (value, own) in enumerate(zip(inputs, first, strict=True)):
            # Views: not one tensor twice, for which alone the function would be compiled.
            copied = self._buffer(index, value) if own == index else buffers[own].view(value.shape)
            buffers.append(copied)
        if key not in self._recorded:
            self._recorded[key] = self._record(buffers)
        graph, outputs = self._recorded[key]
        graph.replay()
        return tree_map_only(Tensor, torch.clone, outputs)

    def _buffer(self, index: int, value: Any) -> Any:
        """The buffer of input ``index``, with this value."""
        if not isinstance(value, Tensor):
            return value
        key = (index, _kind(value))
        if key not in self._buffers:
            self._buffers[key] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            )
        buffer = self._buffers[key]
        version = None if value.is_inference() else value._version  # None: it cannot be told
        held, known = self._held.get(key, (None, None))
        if held is None or held() is not value or version is None or version != known:
            buffer.copy_(value, non_blocking=True)
            self._held[key] = weakref.ref(value), version
        return buffer

    def _record(self, buffers: list[Any]) -> _Recorded:
        """Runs on a stream of its own, as captures have to."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._function(*buffers)
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = self._function(*buffers)
        return _Recorded(graph, outputs)


def _first_places(inputs: tuple[Any, ...], kinds: tuple[Hashable, ...]) -> tuple[int, ...]:
    """Per input the number of the first that is the same tensor in memory, mostly its own."""
    found: dict[int, int] = {}
    places = list(range(len(inputs)))
    for index, value in enumerate(inputs):
        if isinstance(value, Tensor):
            first = found.setdefault(value.data_ptr(), index)
            places[index] = first if kinds[first] == kinds[index] else index
    return tuple(places)


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), tuple(value.stride()), value.dtype, value.device
    return value  # type: ignore[no-any-return]
