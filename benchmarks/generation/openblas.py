"""A fast BLAS for MLX on Linux, whose CPU build is linked to the reference one: 40 times the speed of a float32 model.

OpenBLAS is preloaded, so that its `cblas_sgemm` is found first. Where the system has none, the one inside numpy's
wheel serves: it has other names and wider integers, so ten lines of C are compiled that call one by the other.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

_SHIM = """
#include <stdint.h>
#define GEMM(kind, real) \\
  void scipy_cblas_##kind##64_(int, int, int, int64_t, int64_t, int64_t, real, const real *, int64_t, const real *, \\
                               int64_t, real, real *, int64_t); \\
  void cblas_##kind(int order, int ta, int tb, int m, int n, int k, real alpha, const real *a, int lda, \\
                    const real *b, int ldb, real beta, real *c, int ldc) { \\
    scipy_cblas_##kind##64_(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc); \\
  }
GEMM(sgemm, float)
GEMM(dgemm, double)
"""


@dataclass(frozen=True, slots=True)
class Blas:
    """What MLX multiplies matrices with, and the environment in which a process gets it."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def find_blas(folder: Path, threads: int, library: Path | None = None) -> Blas:
    """The fastest there is, on `threads` threads. `folder`: where to put what has to be compiled."""
    if platform.system() != "Linux":
        return Blas("MLX's own")
    if library is not None:
        if not _loads(blas := _preloaded(f"OpenBLAS ({library})", library, threads)):
            raise click.ClickException(f"{library} cannot be preloaded: is everything there that it needs (see ldd)?")
        return blas
    if (found := _installed()) and _loads(blas := _preloaded(f"OpenBLAS ({found})", found, threads)):
        return blas
    if (shim := _from_numpy(folder)) and _loads(blas := _preloaded("OpenBLAS (numpy's)", shim, threads)):
        return blas
    return Blas("the reference BLAS, for want of OpenBLAS (apt-get install libopenblas0): a large model crawls")


def _preloaded(name: str, library: Path, threads: int) -> Blas:
    return Blas(
        f"{name} on {threads} thread{'s' if threads > 1 else ''}",
        {"LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": str(threads)},
    )


def _loads(blas: Blas) -> bool:
    """Whether a Python starts with it at all."""
    environment = os.environ | blas.environment
    return subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, check=False).returncode == 0


def _installed() -> Path | None:
    if (ldconfig := shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")) is None:
        return None
    listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"^\s*libopenblas\.so\S*.*=> (\S+)$", listed, re.MULTILINE)
    return Path(found[1]) if found else None


def _from_numpy(folder: Path) -> Path | None:
    import numpy

    libraries = Path(numpy.__file__).parents[1] / "numpy.libs"
    bundled, compiler = next(libraries.glob("libscipy_openblas64_*.so"), None), shutil.which("cc")
    if bundled is None or compiler is None:
        return None
    source, shim = folder / "openblas.c", folder / "libopenblas-for-mlx.so"
    source.write_text(_SHIM)
    command: list[str | Path] = [
        compiler,
        "-O2",
        "-shared",
        "-fPIC",
        source,
        bundled,
        f"-Wl,-rpath,{libraries}",
        "-o",
        shim,
    ]
    made = subprocess.run(command, capture_output=True, check=False)
    return shim if made.returncode == 0 else None
