"""From a graph module to something that runs fast."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._dynamo.decorators import mark_unbacked
from torch.fx import GraphModule

from .cuda_graphs import Replayed


class Emitted(Protocol):
    """A graph that runs; ``source`` is its code, empty before the first call."""

    @property
    def source(self) -> str: ...

    def __call__(self, *inputs: Any) -> Any: ...

    def forget(self) -> None:
        """To be called when weights have moved."""


def emit(module: GraphModule, backend: str, sizes: Sequence[int], device: torch.device) -> Emitted:
    """``module`` as it is ("eager"), or compiled at its first call ("inductor"), on CUDA as one
    CUDA graph. The inputs ``sizes`` are tables with an unknown number of rows."""
    if backend == "eager":
        return Interpreted(module)
    return Compiled(module, sizes, replayed=device.type == "cuda")


class Interpreted:
    """The graph's own Python."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module

    @property
    def source(self) -> str:
        return readable(self._module)

    def __call__(self, *inputs: Any) -> Any:
        return self._module(*inputs)

    def forget(self) -> None:
        pass


def readable(module: GraphModule) -> str:
    """A graph as Python."""
    return module.graph.python_code("self").src


class Compiled:
    """Inductor's code; one compilation serves every mask."""

    def __init__(self, module: GraphModule, sizes: Sequence[int], replayed: bool) -> None:
        _mark_caches()
        self._sizes = sizes
        self._sources: list[str] = []
        self._compiled: Callable[..., Any] = torch.compile(module, fullgraph=True)
        self._replayed = Replayed(self._run) if replayed else None

    @property
    def source(self) -> str:
        return "\n\n".join(self._sources)

    def __call__(self, *inputs: Any) -> Any:
        return (self._replayed or self._run)(*inputs)

    def forget(self) -> None:
        if self._replayed is not None:
            self._replayed.forget()

    def _run(self, *inputs: Any) -> Any:
        for index in self._sizes:
            mark_unbacked(inputs[index], 0)
        if self._sources:
            return self._compiled(*inputs)
        with _collected(self._sources):
            return self._compiled(*inputs)


@contextmanager
def _collected(sources: list[str]) -> Iterator[None]:
    """Adds what inductor emits meanwhile, also if it comes from its cache."""
    from torch._inductor.graph import GraphLowering

    before, GraphLowering.save_output_code = GraphLowering.save_output_code, sources.append
    try:
        yield
    finally:
        GraphLowering.save_output_code = before


@cache
def _mark_caches() -> None:
    """Inductor's cache does not see that an operator of ours became another one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    tag = f"sparsify-{digest.hexdigest()[:16]}"
    torch.compiler.config.cache_key_tag = f"{torch.compiler.config.cache_key_tag}{tag}"
