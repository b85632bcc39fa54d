"""Proves the code that inductor emits for CUDA on a machine without a GPU.

:func:`emit_cuda` runs the whole of ``torch.compile`` for tensors that claim to be on a GPU and
stops at the emitted source, :func:`compile_cubins` compiles all Triton kernels in it for a real
architecture, :func:`execute` runs it on the CPU under Triton's interpreter.
"""

from .cubins import compile_cubins
from .emission import Emission, Size
from .execute import execute
from .fake_cuda import emit_cuda

__all__ = ["Emission", "Size", "compile_cubins", "emit_cuda", "execute"]
