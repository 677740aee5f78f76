"""The Cython extensions; everything else about the package is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}

extensions = [
    Extension(
        f"fastcnn.kernels.cpu.{name}",
        [f"fastcnn/kernels/cpu/{name}.pyx"],
        extra_compile_args=["-O3"],  # no -march=native: what is built here may run elsewhere
    )
    for name in ("_batches", "_blas")
]

setup(ext_modules=cythonize(extensions, build_dir="build/cython", compiler_directives=DIRECTIVES))
