"""Triton kernels in an emitted source, compiled for a real architecture."""

from __future__ import annotations

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

import torch._inductor.runtime.triton_heuristics as heuristics
import triton
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource

_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.DOTALL)


def kernels(source: str) -> dict[str, str]:
    """The Triton sources in an emitted ``source``, by name."""
    return dict(_KERNEL.findall(source))


def compile_cubins(source: str, capability: tuple[int, int]) -> dict[str, bytes]:
    """A cubin of every kernel, for each configuration that inductor would try, by their names.

    Raises whatever the compiler says about the first one that fails.
    """
    found = kernels(source)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        compiled = pool.map(_compile, found, found.values(), [capability] * len(found))
        return {name: cubin for cubins in compiled for name, cubin in cubins.items()}


def _compile(name: str, source: str, capability: tuple[int, int]) -> dict[str, bytes]:
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    with patch.object(triton_helpers, "set_driver_to_gpu", lambda: None):
        kernel = getattr(PyCodeCache.load(source), name)
    cubins = {}
    for config in kernel.configs:
        settings = ",".join(f"{k}={v}" for k, v in heuristics.config_to_dict(config).items())
        cubins[f"{name}[{settings}]"] = _cubin(kernel, config, target)
    return cubins


def _cubin(kernel: Any, config: triton.Config, target: GPUTarget) -> bytes:
    meta = kernel._create_compile_meta(config)
    options = kernel._create_compile_options(config, meta)
    source = ASTSource(kernel.fn, meta["signature"], meta["constants"], meta["configs"][0])
    return triton.compile(source, target=target, options=options).asm["cubin"]
