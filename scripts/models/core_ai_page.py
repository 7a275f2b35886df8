"""all-MiniLM-L6-v2, whole, through Core AI: authored here, run by Apple's own runtime, held against the reference.

The tests do so with small models of every family; this one has its real weights, in float32, in every shape of the
default set.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from scripts.models.models_page import write_part

from impetus_backends import models
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreai.device import CoreAIDevice
from impetus_backends.embedding.devices.coreai.form import COREAI
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.form import size_of
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.verified.figures import rows_of

LEAST_COSINE = 0.9999
_INTRODUCTION = """\
Written by `scripts/families --core-ai`: {model} with its real weights, authored
as one Core AI asset of {megabytes:.0f} MB in float32, a function for each shape, and run by Apple's own runtime
(coreai-core {version}) on a CPU. A call holds as many texts as the shape has room for, from full to nearly empty. The
cosine is the least to ONNX Runtime's vectors of the same texts. On a Mac it is unverified; what a call takes says
nothing of one."""


def write_core_ai() -> int:
    """Measures, writes the part, and says how many shapes are below the bar."""
    config = read_config(models.resolve(models.DEFAULT_EMBEDDING_MODEL).folder)
    reference = make_backend("cpu", config)
    reference.load()
    lines = ["| shape | texts | least cosine | seconds a call |", "|---|---|---|---|"]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        cache = PackageCache(COREAI, Path(folder))
        backend = PackagedEmbeddingBackend(config, CoreAIDevice, cache, name="coreai", mode="fp32")
        backend.load()
        (asset,) = Path(folder).glob(f"*/*/{COREAI.file}")
        megabytes = size_of(asset) / 1e6
        for bucket in backend.timings:
            longest = bucket.length // bucket.texts
            rows = rows_of(np.linspace(longest, 2, bucket.most).astype(int).tolist(), config.encoder.vocab_size)
            started = time.perf_counter()
            made = backend.embed(rows).astype(np.float64)
            took_s = time.perf_counter() - started
            expected = reference.embed(rows).astype(np.float64)
            lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(expected, axis=1)
            least = float(((made * expected).sum(axis=1) / lengths).min())
            wrong += least < LEAST_COSINE
            # Cut, and not rounded: no figure is better than what was measured.
            lines.append(f"| {bucket} | {bucket.most} | {np.floor(least * 1e6) / 1e6:.6f} | {took_s:.2f} |")
            print(lines[-1], flush=True)
    introduction = _INTRODUCTION.format(
        model=models.DEFAULT_EMBEDDING_MODEL, megabytes=megabytes, version=COREAI.version()
    )
    write_part("Core AI", "\n".join([introduction, "", *lines]))
    return wrong
