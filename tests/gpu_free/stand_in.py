"""The process behind :func:`.execute`: a machine whose "GPU" is the CPU."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import nullcontext
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from torch._C._dynamo import guards
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner, GridExpr
from triton.runtime.interpreter import InterpreterOptions, TensorHandle, interpreter_builder

_DEVICE = re.compile(r"\bdevice\(type='cuda', index=\d+\)")
_OTHER_NAMES = {"rint": "round", "nearbyint": "round", "fabs": "abs"}


class Libdevice:
    """CUDA's mathematics by torch's functions, most of which have the same names."""

    def __getattr__(self, name: str) -> Any:
        return partial(_elementwise, getattr(torch, _OTHER_NAMES.get(name, name)))


def _elementwise(function: Any, *values: Any) -> tl.tensor:
    """``function`` of the interpreter's tensors, which are numpy arrays, and of numbers."""
    tensors = [value for value in values if isinstance(value, tl.tensor)]
    dtype = tensors[0].handle.data.dtype
    arrays = [v.handle.data if isinstance(v, tl.tensor) else v for v in values]
    broadcast = np.broadcast_arrays(*(np.asarray(array, dtype) for array in arrays))
    result = function(*(torch.from_numpy(array.copy()) for array in broadcast)).numpy()
    kind = tl.int1 if result.dtype == np.bool_ else tensors[0].dtype
    largest = max(tensors, key=lambda tensor: tensor.handle.data.size).type
    return tl.tensor(
        TensorHandle(result, kind), largest.with_element_ty(kind) if largest.is_block() else kind
    )


def run(tuner: CachingAutotuner, *args: Any, stream: int) -> None:
    """Launches a kernel with the first of its settings.

    Unlike inductor's own way into the interpreter it knows absent pointers, and constants that
    are no settings: custom kernels that are inlined into the source have both.
    """
    config, function = tuner.configs[0], tuner.fn
    constants = {**tuner.triton_meta["constants"], **config.kwargs}
    kinds = {name: str(p.annotation) for name, p in signature(function.fn).parameters.items()}
    passed = [n for n, kind in kinds.items() if n not in constants or "constexpr" not in kind]
    # What the size of the grid depends on besides the kernel's arguments.
    others = tuner.inductor_meta.get("extra_launcher_args", ())
    values = dict(zip([*passed, *others], args, strict=True))
    grid = GridExpr.from_meta(tuner.inductor_meta, config).eval_slow(values)
    function[grid](**{name: {**values, **constants}[name] for name in kinds})


def replace_device() -> None:
    """What emitted sources import or call that needs a GPU."""
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    torch.cuda._DeviceGuard = lambda device: nullcontext()
    torch.cuda.set_device = lambda device: None
    guards._empty_strided_cuda = guards._empty_strided_cpu
    triton_helpers.set_driver_to_gpu = lambda: None
    triton_helpers.libdevice = Libdevice()
    CachingAutotuner.run = run
    # As inductor has kernels compiled: indices are asserted, overflows are not looked for.
    interpreter_builder.options = InterpreterOptions(debug=True, sanitize_overflow=False)
    torch.library.impl("aten::_scaled_dot_product_efficient_attention", "CPU", _attention)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result in the order of memory that the kernel has: [N, L, heads, d] transposed."""
    out = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, bias, dropout_p, is_causal, scale=scale
    )[0]
    none = query.new_empty((*query.shape[:2], 0))
    seed = torch.empty((), dtype=torch.int64)
    return out.transpose(1, 2).contiguous().transpose(1, 2), none, seed, seed


def load(source: str) -> ModuleType:
    """An emitted source, with the CPU for the GPU."""
    return PyCodeCache.load(_DEVICE.sub("device(type='cpu')", source))


def main(source: str, given: str, results: str, *imports: str) -> None:
    """Calls the ``source`` with each list of arguments in ``given``."""
    torch.set_num_threads(1)
    replace_device()
    for name in imports:
        importlib.import_module(name)
    module = load(Path(source).read_text())
    outputs: list[list[Tensor]] = []
    with torch.no_grad():
        for arguments in torch.load(given, weights_only=True):
            outputs.append(list(module.call(arguments)))
    torch.save(outputs, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
