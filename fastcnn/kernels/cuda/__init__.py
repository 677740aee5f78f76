"""Kernels for NVIDIA GPUs, through numba-cuda."""
