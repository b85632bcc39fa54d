"""Inductor for CUDA on a torch that has no CUDA.

Tensors stay on the CPU, but everything that the compiler knows of them (their fakes) says
``cuda:0``; what it asks about the device gets the answers of a real one. So the graph goes
through dynamo, autograd's tracing and inductor exactly as in ``torch.compile`` on a GPU, until
the emitted source would be loaded.
"""

from __future__ import annotations

import ctypes
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch._functorch.config
import torch._inductor.config
import torch.utils._triton
from sparsify.codegen.emit import CUDA_OPTIONS, mark_sizes
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.compile_fx import compile_fx
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from torch._subclasses.meta_utils import MetaTensorDescriber
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from . import operators
from .child import in_child
from .emission import Emission, Size, attributes

Capability = tuple[int, int]
CUDA = torch.device("cuda", 0)
_CUDA_VERSION = "13.0"


def emit_cuda(
    module: GraphModule,
    inputs: Sequence[Any],
    dynamic: Mapping[int, int],
    most_rows: int | None = None,
    capability: Capability = (9, 0),
) -> Emission:
    """What ``torch.compile`` emits for ``module`` and ``inputs`` on a GPU of ``capability``.

    Weights and inputs are on the CPU. ``dynamic`` has the axes of inputs whose size, at most
    ``most_rows``, is unknown at compile time.
    Forks: do not call it with more than one thread alive.
    """
    return in_child(_emit, module, inputs, dynamic, most_rows, capability)


class _Emitted(BaseException):
    """Ends a compilation; no handler of the compiler holds it up."""


def _emit(
    module: GraphModule,
    inputs: Sequence[Any],
    dynamic: Mapping[int, int],
    most_rows: int | None,
    capability: Capability,
) -> Emission:
    sources: list[str] = []
    arguments: list[int | str | Size] = []

    def backend(graph: GraphModule, values: Sequence[Any]) -> Any:
        arguments.extend(_origins(graph, values, module, inputs))
        return compile_fx(graph, list(values))

    def capture(lowering: GraphLowering) -> NoReturn:
        code, _ = lowering.codegen()
        sources.append(code.value)
        raise _Emitted

    _move_constants(module)
    mark_sizes(inputs, dynamic, most_rows)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    with pretend(capability), patch.object(GraphLowering, "_compile_to_module", capture):
        try:
            with torch.no_grad():
                compiled(*inputs)
        except _Emitted:
            return Emission(sources[0], tuple(arguments))
    raise AssertionError("nothing was emitted: the graph computes nothing")


def _origins(
    graph: GraphModule, values: Sequence[Any], module: GraphModule, inputs: Sequence[Any]
) -> Iterator[int | str | Size]:
    """Where the arguments ``values`` of dynamo's ``graph`` come from."""
    assert not [*graph.parameters(), *graph.buffers()], "weights that are no arguments"
    origins: dict[int, int | str] = {id(v): name for name, v in attributes(module).items()}
    origins.update({id(v): i for i, v in enumerate(inputs) if isinstance(v, Tensor)})
    nodes = graph.graph.find_nodes(op="placeholder")
    fakes = [node.meta["example_value"] for node in nodes]
    for value, fake in zip(values, fakes, strict=True):
        if isinstance(value, Tensor):
            yield origins[id(value)]
        else:
            yield _size(fake, fakes, [origins.get(id(v)) for v in values])


def _size(symbol: torch.SymInt, fakes: Sequence[Any], origins: Sequence[Any]) -> Size:
    """The first size of an input that is ``symbol``."""
    for fake, origin in zip(fakes, origins, strict=True):
        if isinstance(fake, Tensor) and isinstance(origin, int):
            for dim, size in enumerate(fake.shape):
                if isinstance(size, torch.SymInt) and size.node.expr == symbol.node.expr:
                    return Size(origin, dim)
    raise AssertionError(f"{symbol} is the size of no input")


def _move_constants(module: GraphModule) -> None:
    """Devices written into the graph: it was captured for the CPU."""

    def moved(device: torch.device) -> torch.device:
        return CUDA if device.type == "cpu" else device

    for node in module.graph.nodes:
        node.args, node.kwargs = tree_map_only(torch.device, moved, (node.args, node.kwargs))
    module.recompile()


@contextmanager
def pretend(capability: Capability) -> Iterator[None]:
    """Inside, the compiler finds one GPU, and all tensors that it describes are on it."""
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    answers = _answers(capability)
    _register_device_guard()
    operators.register()
    _forget_answers()
    driver.set_active(SimpleNamespace(get_current_target=lambda: target))
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
            if hasattr(CudaInterface, name):
                stack.enter_context(patch.object(CudaInterface, name, staticmethod(answer)))
        stack.enter_context(patch.object(torch.version, "cuda", _CUDA_VERSION))
        # Otherwise fake tensors are made of real ones, once there seems to be a GPU.
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(patch.object(MetaTensorDescriber, "describe_tensor", _describe))
        stack.enter_context(_settings())
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield


def _forget_answers() -> None:
    """What an earlier compilation for the CPU found out about Triton is not so here."""
    for function in vars(torch.utils._triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


_describe_tensor = MetaTensorDescriber.describe_tensor


def _describe(describer: MetaTensorDescriber, tensor: Tensor, **kwargs: Any) -> Any:
    """The description from which a fake is made, moved to the GPU."""
    description = _describe_tensor(describer, tensor, **kwargs)
    if description.device.type != "cpu":
        return description
    return dataclasses.replace(description, device=CUDA)


def _answers(capability: Capability) -> dict[str, Any]:
    """Stand-ins for functions of ``torch.cuda``; the numbers are an H100's."""
    properties = SimpleNamespace(
        name="none",
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block_optin=232448,
        L2_cache_size=50 << 20,
        total_memory=80 << 30,
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda _=None: capability,
        "get_device_properties": lambda _=None: properties,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda device: device,
        "_maybe_exchange_device": lambda device: device,
    }


@contextmanager
def _settings() -> Iterator[None]:
    """No measurements on a device, no sources from a cache, no other processes."""
    inductor = torch._inductor.config.patch(
        shape_padding=False,
        benchmark_epilogue_fusion=False,
        fx_graph_cache=False,
        fx_graph_remote_cache=False,
        compile_threads=1,
        **CUDA_OPTIONS,
    )
    with inductor, torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def _register_device_guard() -> None:
    """Gives CUDA the CPU's guard, which does nothing, where torch was built without CUDA's.

    ``x[index]`` and other calls look it up even for fakes. It is an array of pointers by device
    type, and none of the functions that write to it can be called from Python.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    symbol = "_ZN3c104impl26device_guard_impl_registryE"
    cpu_and_cuda = (ctypes.c_void_p * 2).in_dll(library, symbol)
    cpu_and_cuda[1] = cpu_and_cuda[1] or cpu_and_cuda[0]
