"""The Triton kernels in an emitted source, compiled for a real architecture."""

from __future__ import annotations

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import triton
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import config_to_dict
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_KERNEL = re.compile(
    r"^(\w+) = async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Kernel:
    """A Triton ``function``, with its settings, in a source of its own."""

    name: str
    function: str
    source: str

    def load(self) -> Any:
        """Inductor's ``CachingAutotuner``."""
        with patch.object(triton_helpers, "set_driver_to_gpu", lambda: None):
            return getattr(PyCodeCache.load(self.source), self.function)


def kernels(source: str) -> list[Kernel]:
    """The Triton kernels in an emitted ``source``."""
    found = [Kernel(*groups) for groups in _KERNEL.findall(source)]
    assert len(found) == source.count("async_compile.triton("), "written in an unknown form"
    return found


def compile_cubins(
    source: str, capability: tuple[int, int], first_only: bool = False
) -> dict[str, bytes]:
    """A cubin of every kernel in ``source`` by its name and settings.

    Of each for all the settings that inductor would choose from by measurement, or for the first
    of them. Raises what the compiler says about one that fails.
    """
    found = kernels(source)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        compiled = pool.map(partial(_compile, capability, first_only), found)
        return {name: cubin for cubins in compiled for name, cubin in cubins.items()}


def _compile(capability: tuple[int, int], first_only: bool, kernel: Kernel) -> dict[str, bytes]:
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    tuner = kernel.load()
    cubins = {}
    for config in tuner.configs[:1] if first_only else tuner.configs:
        settings = ",".join(f"{key}={value}" for key, value in config_to_dict(config).items())
        cubins[f"{kernel.name}[{settings}]"] = _cubin(tuner, config, target)
    return cubins


def _cubin(tuner: Any, config: triton.Config, target: GPUTarget) -> bytes:
    """What the tuner does itself, except for loading the result into a device."""
    meta = tuner._create_compile_meta(config)
    options = tuner._create_compile_options(config, meta)
    source = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    return triton.compile(source, target=target, options=options).asm["cubin"]
