"""The model as one `.aimodel` asset: a function for every bucket, and every weight once.

Runs wherever the library does. The asset needs macOS 27, the first with Core AI.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from impetus_backends.embedding.devices.coreai.library import coreai
from impetus_backends.embedding.devices.coreai.ops import CoreAIOps
from impetus_backends.embedding.devices.operations import INPUTS, Inputs
from impetus_backends.embedding.devices.packages.form import OUTPUT, check_lengths, input_shapes
from impetus_backends.embedding.encoder import embed
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.errors import BackendUnavailableError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.coreai.library import Library
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.form import Progress
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.weights import Weights

FIRST_MACOS, FIRST_IOS = 27, 27
_MARGIN_BYTES = 16 * 2**20
"""For what an asset holds beside its weights."""


def build(
    config: EmbeddingConfig,
    buckets: Sequence[Bucket],
    path: Path,
    *,
    mode: str,
    calibration: Sequence[np.ndarray],
    progress: Progress,
) -> None:
    """As `form.Build`; `mode` is `none` for float16, or `fp32`."""
    check_lengths(config, buckets, "Core AI")
    ai, weights = coreai(), open_weights(config)
    _check_room(path.parent, weights.size_bytes() // (1 if mode == "fp32" else 2))
    module = ai.module.create()
    try:
        with module:
            for done, bucket in enumerate(buckets):
                progress(f"function {bucket.function}", 0.7 * done / len(buckets))
                _add_function(ai, config, weights, bucket, mode)
        progress("writing the asset", 0.7)
        ai.program(module).save_asset(path, _metadata(ai))
    except ModelError:
        raise
    except Exception as error:
        raise BackendUnavailableError(f"Core AI's library could not author the model: {error}") from error
    progress("converted", 1.0)


def _check_room(folder: Path, weights_bytes: int) -> None:
    """Raises `BackendUnavailableError` where the disk has no room: the library ends the process over a full one."""
    needed, free = weights_bytes + _MARGIN_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise BackendUnavailableError(
            f"the disk is too full: the asset takes about {needed / 2**20:.0f} MiB in {folder}, and "
            f"{free / 2**20:.0f} MiB are free"
        )


def _add_function(ai: Library, config: EmbeddingConfig, weights: Weights, bucket: Bucket, mode: str) -> None:
    # Positional, and with its shapes in annotations: the library reads both off a function.
    def function(ids: Any, positions: Any, mask: Any, shares: Any) -> Any:
        ops = CoreAIOps(ai, weights, "fp32" if mode == "fp32" else "fp16")
        return embed(ops, config, Inputs(ids, positions, mask, shares, packed=bucket.packed))

    def typed(name: str, shape: tuple[int, ...], kind: Any) -> Any:
        return Annotated[ai.value, ai.tensor(shape, kind, name=name)]

    function.__annotations__ = {
        name: typed(name, shape, np.int32 if name in INPUTS[:2] else np.float32)
        for name, shape in input_shapes(config, bucket).items()
    }
    function.__annotations__["return"] = typed(OUTPUT, (bucket.batch, bucket.texts, config.dimensions), np.float32)
    ai.graph(function, provided_name=bucket.function)


def _metadata(ai: Library) -> Any:
    """What the asset says of itself."""
    about = ai.metadata()
    about.model_description = "A text-embedding model, a function for each shape: batch<texts>_length<tokens>"
    about.set_custom("first_macos", FIRST_MACOS)
    about.set_custom("first_ios", FIRST_IOS)
    about.set_custom("written_by", f"impetus-batch, coreai-core {ai.version}")
    return about
