"""Weights from safetensors files, as numpy arrays in float32, looked up by the names that the encoder uses.

Format: https://github.com/huggingface/safetensors#format. Read here and not through the library, because numpy has no
bfloat16 and a mapped file costs no memory until a tensor is asked for.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.config import read_json
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.config import EmbeddingConfig

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PREFIXES = ("bert.", "distilbert.", "roberta.")
# The first BERT checkpoints were converted from TensorFlow and kept its names.
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")


class Weights:
    """The tensors of one model by name, `bert.` and its like stripped. Unknown names raise `ModelError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, tuple[np.ndarray, str]] = {}
        for file in weight_files(folder):
            for name, tensor, dtype in _tensors(file):
                self._tensors[_plain(name)] = (tensor, dtype)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor, float32 and contiguous."""
        try:
            tensor, dtype = self._tensors[name]
        except KeyError:
            raise ModelError(f"the weights in {self._folder} have no tensor {name}") from None
        if dtype == "BF16":
            return (tensor.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(tensor, dtype=np.float32)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: `model.safetensors`, or the shards its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelError(f"{folder} has no model.safetensors; other formats can run code when read and are not loaded")
    names = sorted(set(read_json(index, dict).get("weight_map", {}).values()))
    if any("/" in name or name.startswith(".") for name in names):
        raise ModelError(f"{index} points outside its folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(f"{index} names shards that are missing: {', '.join(missing) or 'it names none'}")
    return [folder / name for name in names]


def fingerprint(config: EmbeddingConfig) -> str:
    """Sixteen hex digits of a SHA-256 over all that decides a vector: weights, shape, pooling, tokenizer, prompts."""
    digest = hashlib.sha256(repr((config.encoder, config.pooling, config.text)).encode())
    files = [config.transformer / name for name in _TOKENIZER_FILES]
    for file in [*weight_files(config.transformer), *(file for file in files if file.is_file())]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _tensors(file: Path) -> list[tuple[str, np.ndarray, str]]:
    found = []
    try:
        raw = np.memmap(file, dtype=np.uint8, mode="r")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(raw[8:start].tobytes())
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in _DTYPES:
                continue  # integers are buffers such as position_ids, never weights
            begin, end = entry["data_offsets"]
            data = raw[start + begin : start + end].view(_DTYPES[entry["dtype"]])
            found.append((name, data.reshape(entry["shape"]), entry["dtype"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
    return found


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name
