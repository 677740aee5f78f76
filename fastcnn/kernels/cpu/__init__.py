"""The CPU backend: Numba kernels (imported through `backend`) and Cython extensions. Importing this package
alone is cheap.
"""
