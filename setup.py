"""The Cython extensions; everything else about the package is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}

COMPILE_ARGS = ["-O3"]  # no -march=native: what is built here may run elsewhere
if "CFLAGS" not in os.environ:
    COMPILE_ARGS.append("-g0")  # what Python adds for debuggers makes files five times as large and takes a while

extensions = [
    Extension(
        f"fastcnn.kernels.cpu.{name}",
        [f"fastcnn/kernels/cpu/{name}.pyx"],
        extra_compile_args=COMPILE_ARGS,
    )
    for name in ("_batches", "_blas")
]

setup(
    ext_modules=cythonize(extensions, build_dir="build/cython", compiler_directives=DIRECTIVES),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
