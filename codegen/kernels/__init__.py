"""Kernels: in C++ for CPUs; in Triton for CUDA, imported there alone, for torch without CUDA comes
without triton."""
