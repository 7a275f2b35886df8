"""Core ML packages as a form of package: plain, made smaller, or calibrated on a Mac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.devices.coreml import limits, macos, ops, package, quantize
from impetus_backends.embedding.devices.coreml.library import coremltools
from impetus_backends.embedding.devices.packages.form import Form

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.form import Progress, Samples
    from impetus_backends.embedding.folder.config import EmbeddingConfig


def _build(
    config: EmbeddingConfig,
    buckets: Sequence[Bucket],
    path: Path,
    *,
    mode: str,
    samples: Samples,
    progress: Progress,
) -> None:
    if mode == "w8a8":
        macos.build_w8a8(config, buckets, path, samples, progress)
    else:
        package.build(config, buckets, path, mode=mode, progress=progress)


COREML = Form(
    name="coreml",
    title="Core ML",
    file="model.mlpackage",
    modes=quantize.MODES,
    needs=f"macOS {package.FIRST_MACOS} or iOS {package.FIRST_IOS}",
    version=lambda: str(coremltools().__version__),
    writers=(ops, package, quantize),
    build=_build,
    too_large=limits.too_large,
)
