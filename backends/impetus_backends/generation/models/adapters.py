"""LoRA adapters: one model under several names, its weights in memory once.

mlx-lm reads them: `adapters.safetensors` beside `adapter_config.json`, as `mlx_lm.lora` writes both. Each adapter has
an engine of its own, and the layers that it changes hold the base's arrays: copying an MLX module copies none of them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .libraries import one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .loader import LoadedModel

_WEIGHTS = "adapters.safetensors"
_CHANGES = ("lora_a", "lora_b", "m")
"""What mlx-lm calls the weights that an adapter brings."""


def check_adapter(name: str, folder: Path) -> int:
    """The bytes that an adapter takes. Raises `ModelError` for a folder that does not hold one that mlx-lm reads."""
    if not folder.is_dir():
        raise ModelError(f"--adapter {name}: there is no folder {folder}")
    if (folder / "adapter_model.safetensors").exists() or (folder / "adapter_model.bin").exists():
        raise ModelError(
            f"--adapter {name}: {folder} holds an adapter in PEFT's form, and only mlx-lm's is read "
            f"({_WEIGHTS} with adapter_config.json, as mlx_lm.lora writes them)"
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        size = (folder / _WEIGHTS).stat().st_size
    except (OSError, ValueError) as error:
        raise ModelError(f"--adapter {name}: there is no adapter in {folder}: {one_line(error)}") from error
    kind = config.get("fine_tune_type", "lora") if isinstance(config, dict) else None
    if kind not in ("lora", "dora"):
        raise ModelError(
            f"--adapter {name}: {folder} says that it is {kind!r:.40}, and only lora and dora are adapters"
        )
    return size


class SharedWeights:
    """A model as it is, and with any of its adapters. Used by one thread."""

    def __init__(self, load: Callable[[Path], LoadedModel], folder: Path) -> None:
        self._load, self._folder = load, folder
        self._base: LoadedModel | None = None

    def with_adapter(self, adapter: Path | None) -> LoadedModel:
        """The model, changed by the adapter in this folder if there is one; no other that was made here changes.

        Raises what `load` does, and `ModelError` for an adapter that is not of this model.
        """
        if self._base is None:
            self._base = self._load(self._folder)
        loaded = replace(self._base, model=copy.deepcopy(self._base.model))
        return loaded if adapter is None else _adapted(loaded, adapter)


def _adapted(loaded: LoadedModel, folder: Path) -> LoadedModel:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import load_adapters

    model: Any = loaded.model
    try:
        load_adapters(model, str(folder))
        brought: Any = mx.load(str(folder / _WEIGHTS))
    except Exception as error:  # mlx-lm raises whatever its parsers raise; all of it means this folder
        raise ModelError(f"the adapter in {folder} is not one of this model: {one_line(error)}") from error
    # What is not there mlx-lm leaves as it is before training: the model as if it had fewer layers adapted, or none.
    changed = [name for name, _ in tree_flatten(model.parameters()) if name.rpartition(".")[2] in _CHANGES]
    if lacking := [name for name in changed if name not in brought]:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise ModelError(f"the adapter in {folder} is not whole: it lacks {min(lacking)}{more}")
    model.eval()
    digest = hashlib.sha256(loaded.fingerprint.encode())
    for name in ("adapter_config.json", _WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return replace(
        loaded,
        fingerprint=digest.hexdigest()[:16],
        reasons=(*loaded.reasons, f"with the adapter in {folder}, on weights that are in memory once"),
    )
