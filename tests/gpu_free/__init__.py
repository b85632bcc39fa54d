"""Proofs about GPU code on machines without a GPU.

:func:`.fake_cuda.emit_cuda` runs the whole of ``torch.compile`` for tensors that claim to be on a
GPU and stops at the emitted source, :func:`.emitted.compile_cubins` compiles all Triton kernels
in it for a real architecture, :func:`.execute.execute` runs it on the CPU under Triton's
interpreter.
"""
