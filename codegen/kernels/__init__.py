"""Triton kernels: imported on CUDA alone, for torch without CUDA comes without triton."""
