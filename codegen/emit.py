"""From a graph module to something that runs fast."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from threading import RLock, get_ident
from typing import Any

import torch
from torch._dynamo.decorators import mark_unbacked
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config as inductor
from torch.fx import GraphModule

from .cuda_graphs import Replayed
from .sources import of_operators
from .tracing import beside_no_trace

CUDA_OPTIONS: dict[str, Any] = {
    # A norm with its activation is one kernel: silu reads twice what five reads make, and by
    # default inductor writes out what more than four make.
    "realize_reads_threshold": 8,
}
_FIRST_CALLS = RLock()
"""Held while torch's settings are those of one compilation: they are the process's."""
_KNOWS_BOUNDS = "max" in signature(mark_unbacked).parameters  # not yet in torch 2.11


class Emitted:
    """A graph that runs as it is."""

    def __init__(self, module: GraphModule) -> None:
        self._module, self._has_code = module, False

    @property
    def source(self) -> str:
        """The code that runs; empty if it is not known before the first call."""
        return readable(self._module)

    def __call__(self, *inputs: Any) -> Any:
        if not self._has_code:
            self._module.recompile()
            self._has_code = True
        return self._module(*inputs)

    def forget(self) -> None:
        """To be called when weights have changed or moved."""

    def ahead(self, inputs: Sequence[Any], tell: Callable[[str], None]) -> None:
        """Compiles what is to be compiled, for calls like this one, and tells what it does."""
        self(*inputs)


class Compiled(Emitted):
    """Compiled by inductor at the first call. ``sizes`` has the axes of inputs whose size,
    ``most`` at most, is to stay unknown, so that one compilation serves every mask.
    ``options`` are inductor's. ``frozen`` weights are constants, kept once more in the order that
    the library's kernels want. What it cannot compile runs as it is, with a warning that calls it
    ``name``."""

    def __init__(
        self,
        module: GraphModule,
        sizes: Mapping[int, int],
        most: int | None = None,
        options: dict[str, Any] | None = None,
        name: str = "update",
        frozen: bool = False,
    ) -> None:
        super().__init__(module)
        self._name, self._frozen, self._options = name, frozen, options
        self._sizes, self._most = sizes, most
        self._sources: list[str] = []
        self._compile()

    @property
    def source(self) -> str:
        return "\n\n".join(self._sources)

    def __call__(self, *inputs: Any) -> Any:
        mark_sizes(inputs, self._sizes, self._most)
        with beside_no_trace():
            if not self._has_run:
                with _FIRST_CALLS:
                    if not self._has_run:
                        return self._first(*inputs)
            return self._compiled(*inputs)

    def _first(self, *inputs: Any) -> Any:
        with _marked(), _collected(self._sources), inductor.patch(freezing=self._frozen):
            try:
                result = self._compiled(*inputs)
            except TorchDynamoException as error:
                self._give_up(error)
                result = self._compiled(*inputs)
        self._has_run = True
        return result

    def forget(self) -> None:
        if self._frozen:
            self._compile()

    def _compile(self) -> None:
        """At the first call. Not as a module: captures patch how all of these are called."""
        self._module.recompile()  # new code, which torch.compile does not know
        self._compiled: Callable[..., Any] = torch.compile(
            self._module.forward, fullgraph=True, options=self._options
        )
        self._has_run = False

    def _give_up(self, error: Exception) -> None:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"the {self._name} cannot be compiled and runs uncompiled, slower: {reason} "
            '(backend="eager" says nothing)',
            stacklevel=2,
        )
        self._compiled, self._sources = self._module, [readable(self._module)]


class OnCuda(Emitted):
    """``emitted`` as CUDA graphs, without the inputs that it does not read. The first ``given``
    inputs are the caller's; nothing ever writes to the others."""

    def __init__(self, emitted: Emitted, given: int) -> None:
        super().__init__(emitted._module)
        self._emitted = emitted
        self._replayed = Replayed(emitted, given)
        placeholders = self._module.graph.find_nodes(op="placeholder")
        self._read = [bool(node.users) for node in placeholders]

    @property
    def source(self) -> str:
        return self._emitted.source

    def __call__(self, *inputs: Any) -> Any:
        pairs = zip(inputs, self._read, strict=True)
        return self._replayed(*(value if read else None for value, read in pairs))

    def forget(self) -> None:
        self._emitted.forget()
        self._replayed.forget()


def readable(module: GraphModule) -> str:
    """A graph as Python."""
    return module.graph.python_code("self").src


def mark_sizes(inputs: Sequence[Any], sizes: Mapping[int, int], most: int | None) -> None:
    """Declares sizes of some inputs unknown, by input and axis, but not 0: no table is empty.
    A bound ``most`` lets indices be 32 bits wide."""
    bounds: dict[str, Any] = {"min": 1, "max": most} if _KNOWS_BOUNDS else {}
    for index, axis in sizes.items():
        mark_unbacked(inputs[index], axis, **bounds)


@contextmanager
def _collected(sources: list[str]) -> Iterator[None]:
    """Adds what inductor emits for this thread meanwhile, also if it comes from its cache.

    Torch's ``run_and_get_code`` hears all threads, and forgets everything compiled before.
    """
    from torch._inductor.graph import GraphLowering

    own = get_ident()
    before: Callable[[str], None] | None = GraphLowering.save_output_code

    def save(code: str) -> None:
        if get_ident() == own:
            sources.append(code)
        elif before is not None:
            before(code)

    GraphLowering.save_output_code = save
    try:
        yield
    finally:
        GraphLowering.save_output_code = before


@contextmanager
def _marked() -> Iterator[None]:
    """Inductor's cache does not see that a custom operator became another one."""
    config: Any = torch.compiler.config
    with config.patch(cache_key_tag=f"{config.cache_key_tag}{of_operators()}"):
        yield
