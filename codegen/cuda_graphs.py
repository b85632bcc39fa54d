"""One CUDA graph for each set of sizes: an update is then a single launch.

``torch.compile(mode="reduce-overhead")`` records no graph where a size is unknown to the
compiler, and the number of active sites is; padded tables (:mod:`.tables`) make it one of few.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
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

    Inputs are copied into buffers that all recordings share, and results out of them. The first
    ``given`` inputs are the caller's, who may write to them unseen; the others never change, and
    one that its buffer holds already is not copied again. Inputs that are the same memory share a
    buffer. All tensors have to be on one CUDA device, else the function is called as it is.
    """

    def __init__(self, function: Callable[..., Any], given: int) -> None:
        self._function, self._given = function, given
        self._lock = Lock()
        self.forget()

    def forget(self) -> None:
        """Drops the recordings, which read the weights where they stood."""
        self._recorded: dict[Hashable, _Recorded] = {}
        self._buffers: dict[Hashable, Tensor] = {}
        self._held: dict[Hashable, weakref.ref[Tensor]] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Any) -> Any:
        if not all(x.is_cuda for x in inputs if isinstance(x, Tensor)):
            return self._function(*inputs)
        with self._lock:  # the device does in this order what one call after another asks for
            return self._replay(inputs)

    def _replay(self, inputs: Sequence[Any]) -> Any:
        kinds = [_kind(x) for x in inputs]
        places = _places(inputs, kinds)
        buffers: list[Any] = []
        for index, (place, kind, value) in enumerate(zip(places, kinds, inputs, strict=True)):
            # Views: not one tensor twice, for which alone the function would be compiled.
            shared = place < index
            own = buffers[place].view(value.shape) if shared else self._buffer(index, kind, value)
            buffers.append(own)
        key = (*kinds, *places)
        if key not in self._recorded:
            self._recorded[key] = self._record(buffers)
        graph, outputs = self._recorded[key]
        graph.replay()
        return tree_map_only(Tensor, torch.clone, outputs)

    def _buffer(self, index: int, kind: Hashable, value: Any) -> Any:
        """The buffer of input ``index``, with this value."""
        if not isinstance(value, Tensor):
            return value
        key = (index, kind)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            )
        buffer = self._buffers[key]
        held = self._held.get(key)
        if index < self._given or held is None or held() is not value:
            buffer.copy_(value, non_blocking=True)
            self._held[key] = weakref.ref(value)
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
        # Other threads may copy and allocate meanwhile: a store fetches what the next call reads.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._function(*buffers)
        return _Recorded(graph, outputs)


def _places(inputs: Sequence[Any], kinds: Sequence[Hashable]) -> list[int]:
    """For each input the first one that is the same memory, read alike."""
    first: dict[Hashable, int] = {}
    return [
        first.setdefault((x.data_ptr(), kind), index) if isinstance(x, Tensor) else index
        for index, (x, kind) in enumerate(zip(inputs, kinds, strict=True))
    ]


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), tuple(value.stride()), value.dtype, value.device
    return value  # type: ignore[no-any-return]
