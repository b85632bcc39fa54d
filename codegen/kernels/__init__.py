"""Kernels: one in C++ for CPUs, the others in Triton, imported on CUDA alone, for torch without
CUDA comes without triton."""
