"""The process behind :func:`.execute`: a machine whose "GPU" is the CPU."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import nullcontext
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
from triton.runtime.interpreter import TensorHandle

_DEVICE = re.compile(r"\bdevice\(type='cuda', index=\d+\)")


class Libdevice:
    """CUDA's mathematics by torch's functions of the same names."""

    _OTHERS = {"rint": "round", "nearbyint": "round", "fabs": "abs", "isinf": "isinf"}

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, self._OTHERS.get(name, name))

        def apply(*values: Any) -> tl.tensor:
            tensors = [value for value in values if isinstance(value, tl.tensor)]
            kind = tensors[0].dtype
            arrays = np.broadcast_arrays(*(_array(value) for value in values))
            result = function(*(torch.from_numpy(array.copy()) for array in arrays)).numpy()
            kind = tl.int1 if result.dtype == np.bool_ else kind
            like = max(tensors, key=lambda tensor: tensor.handle.data.size).type
            shape = like.with_element_ty(kind) if like.is_block() else kind
            return tl.tensor(TensorHandle(result, kind), shape)

        return apply


def _array(value: Any) -> Any:
    return value.handle.data if isinstance(value, tl.tensor) else np.asarray(value)


def replace_device() -> None:
    """What emitted sources import or call that needs a GPU."""
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    torch.cuda._DeviceGuard = lambda device: nullcontext()
    torch.cuda.set_device = lambda device: None
    guards._empty_strided_cuda = guards._empty_strided_cpu
    triton_helpers.set_driver_to_gpu = lambda: None
    triton_helpers.libdevice = Libdevice()


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
