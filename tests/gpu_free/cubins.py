"""Hand-written kernels compiled for GPUs that are not there: Triton brings its own assembler."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compile_cubin(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    capability: int,
    num_warps: int,
    num_stages: int,
) -> Any:
    """``kernel`` compiled for ``capability``, say 80; raises where that fails.

    signature: "*fp16", "i32", ... by name; constants: all the other arguments, absent pointers
    (None) among them. Pointers count as aligned to 16 bytes, as torch's allocations are.
    """
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    assert set(types) == {*signature, *constants}, "each argument is typed or constant"
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(types.values())
        if kind.startswith("*")
    }
    return triton.compile(
        ASTSource(kernel, types, dict(constants), aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )


def stack_bytes(compiled: Any) -> int:
    """Of one thread: where registers do not suffice, numbers are spilled there."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [tool, "--dump-resource-usage", file.name]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", used)))
