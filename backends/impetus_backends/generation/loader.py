"""Loads a language model from a folder in the Hugging Face layout, with mlx-lm.

It knows folders and mlx-lm's loading. It does not download, and it never runs code that came with a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailableError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEFAULT_CONTEXT_TOKENS = 4096
"""What a model is taken to read when its files do not say."""

CACHE_LIMIT_BYTES = 1 << 30
"""The most freed memory that MLX may keep for reuse. Without a bound, ever new shapes make it grow for ever."""

# The names under which configurations state the longest sequence, the common one first.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and its tokenizer, ready to run on `device` by the thread that loaded them."""

    model: Any
    """An `mlx.nn.Module`: (rows, tokens) to logits."""
    tokenizer: Any
    """mlx-lm's `TokenizerWrapper`."""
    context_tokens: int
    """The longest prompt and answer together."""
    fingerprint: str
    """16 hex digits of a sha256 over weights, configuration and the backend's name."""
    precision: str
    """Such as `bfloat16`, or `4-bit affine (groups of 64)`."""
    device: str
    """`cpu`, or `gpu` and its architecture."""
    note: str | None
    """What the model's own configuration asks to be said with every result (`impetus_note`)."""


def load(folder: Path) -> LoadedModel:
    """Loads the model in `folder` into memory and bounds MLX's pool of freed memory to `CACHE_LIMIT_BYTES`.

    Raises `BackendUnavailableError` where MLX or mlx-lm is not installed, and `ModelError` for a folder that is not a
    model mlx-lm can run. Takes seconds: it reads the weights once to load and once to hash them.
    """
    config = _config(folder)
    try:
        with _file_limit_kept():
            import mlx.core as mx
            import mlx_lm
    except ImportError as error:
        raise BackendUnavailableError(
            f"generation needs MLX and mlx-lm, and {error.name or error} cannot be imported: "
            "pip install 'impetus-batch[mlx]'"
        ) from error

    try:
        parts: Any = mlx_lm.load(
            str(folder), tokenizer_config={"trust_remote_code": False}, return_config=True, trust_remote_code=False
        )
        model, tokenizer, full_config = parts
    except Exception as error:  # mlx-lm raises whatever its parsers raise; all of it means this folder
        raise ModelError(f"mlx-lm cannot load the model in {folder}: {_one_line(error)}") from error

    mx.set_cache_limit(CACHE_LIMIT_BYTES)
    context_tokens = _context_tokens(config, tokenizer)
    # Prompts that are too long are refused here with both figures: transformers need not warn of them on stderr.
    tokenizer.model_max_length = sys.maxsize
    note = config.get("impetus_note")
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        context_tokens=context_tokens,
        fingerprint=_fingerprint(folder),
        precision=_precision(model, full_config),
        device=_device(mx),
        note=note if isinstance(note, str) else None,
    )


@contextlib.contextmanager
def _file_limit_kept() -> Iterator[None]:
    """Shields the process's limit on open files from mlx-lm, which sets it to (2048, 4096) when imported.

    Putting it back afterwards would not do: only root may raise a hard limit again. And where the hard limit is
    below 4096, the import itself would fail.
    """
    original = resource.setrlimit

    def shielded(kind: int, limits: tuple[int, int]) -> None:
        if kind != resource.RLIMIT_NOFILE:
            original(kind, limits)

    resource.setrlimit = shielded
    try:
        yield
    finally:
        resource.setrlimit = original


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"there is no model in {folder}: config.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {_one_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return config


def _context_tokens(config: dict[str, Any], tokenizer: Any) -> int:
    text_config = config.get("text_config")
    for section in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(length := section.get(key), int) and length > 0:
                return length
    # Tokenizers that do not know say 1e30.
    length = getattr(tokenizer, "model_max_length", 0)
    return length if isinstance(length, int) and 0 < length <= 100_000_000 else DEFAULT_CONTEXT_TOKENS


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256(b"mlx")
    for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _precision(model: Any, config: dict[str, Any]) -> str:
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "bits" in quantization:
        mode, group = quantization.get("mode", "affine"), quantization.get("group_size")
        return f"{quantization['bits']}-bit {mode}" + (f" (groups of {group})" if group else "")
    from mlx.utils import tree_flatten

    weights: Any = tree_flatten(model.parameters())
    sizes: Counter[str] = Counter()
    for _, weight in weights:
        sizes[str(weight.dtype).removeprefix("mlx.core.")] += weight.size
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _device(mx: Any) -> str:
    if mx.default_device().type == mx.DeviceType.gpu:
        return f"gpu {mx.device_info()['architecture']}" if mx.metal.is_available() else "gpu"
    return "cpu"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
