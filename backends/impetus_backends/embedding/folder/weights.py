"""Weights from safetensors files, as numpy arrays in float32, looked up by the names that the encoder uses.

Format: https://github.com/huggingface/safetensors#format. Read here and not through the library, because numpy has no
bfloat16 and a mapped file costs no memory until a tensor is asked for.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.folder.files import read_json
from impetus_backends.embedding.modules import Dense
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PREFIXES = ("bert.", "distilbert.", "roberta.", "electra.", "mpnet.", "nomic_bert.", "gte.", "new.", "model.")
_OTHER_FORMS = ("*.gguf", "*.onnx", "onnx/*.onnx", "tf_model.h5", "*.msgpack", "*.safetensors", "*.bin")
# The first BERT checkpoints were converted from TensorFlow and kept its names.
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_TOKENIZER_FILES = (
    *("*.model", "*.tiktoken", "*.txt", "tokenizer*.json", "vocab.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)


class Weights:
    """The tensors of one model by name, `bert.` and its like stripped. Unknown names raise `ModelError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, tuple[np.ndarray, str]] = {}
        self._add(folder, "")

    @classmethod
    def of(cls, config: EmbeddingConfig) -> Weights:
        """Those of the whole model: a dense layer's go by the name of its folder."""
        weights = cls(config.transformer)
        for step in config.steps:
            if isinstance(step, Dense):
                weights._add((config.root or config.transformer) / step.folder, f"{step.folder}/")
        return weights

    def _add(self, folder: Path, prefix: str) -> None:
        for file in weight_files(folder):
            for name, tensor, dtype in _tensors(file):
                plain = prefix + _plain(name)
                if plain in self._tensors:
                    raise ModelError(f"the weights in {folder} hold {plain} twice, under two names")
                self._tensors[plain] = (tensor, dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, not yet read; raises `ModelError` where it is missing or stored in a form not read here."""
        tensor, dtype = self._find(name)
        if dtype not in _DTYPES:
            raise ModelError(
                f"the weights in {self._folder} hold {name} as {dtype}, and {', '.join(_DTYPES)} are read: "
                "take a copy of the model that is not quantised"
            )
        return tensor.shape

    def has(self, name: str) -> bool:
        return name in self._tensors

    def size_bytes(self) -> int:
        """What all of them take in float32."""
        return 4 * sum(tensor.size for tensor, dtype in self._tensors.values() if dtype in _DTYPES)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor, float32 and contiguous."""
        self.shape(name)
        tensor, dtype = self._find(name)
        if dtype == "BF16":
            return (tensor.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(tensor, dtype=np.float32)

    def _find(self, name: str) -> tuple[np.ndarray, str]:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"the weights in {self._folder} have no tensor {name}") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: `model.safetensors`, or the shards its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
        if pickled is None:
            others = sorted(file.name for kind in _OTHER_FORMS for file in folder.glob(kind))
            raise ModelError(
                f"{folder} has no model.safetensors" + (f", and {others[0]} is not read" if others else "")
            )
        raise ModelError(
            f"{folder} has {pickled.name} and no model.safetensors: a pickle can run code when read, and is never "
            'loaded here. Convert it once, where torch is installed: python -c "import torch, safetensors.torch as s; '
            f"t = torch.load('{pickled.name}', weights_only=True); "
            "s.save_file({k: v.clone().contiguous() for k, v in t.items()}, 'model.safetensors')\""
        )
    where = read_json(index, dict).get("weight_map", {})
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelError(f"{index}: weight_map does not say by name which file a tensor is in")
    names = sorted(set(where.values()))
    if any("/" in name or name.startswith(".") for name in names):
        raise ModelError(f"{index} points outside its folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(f"{index} names shards that are missing: {', '.join(missing) or 'it names none'}")
    return [folder / name for name in names]


def fingerprint(config: EmbeddingConfig) -> str:
    """Sixteen hex digits of a SHA-256 over all that decides a vector: what the files say, and every file read."""
    digest = hashlib.sha256(repr((config.encoder, config.pooling, config.text, config.steps, config.truncate)).encode())
    files = set(config.files) | set(weight_files(config.transformer))
    for pattern in _TOKENIZER_FILES:
        files.update(config.transformer.glob(pattern))
    for step in config.steps:
        if isinstance(step, Dense):
            files.update(weight_files((config.root or config.transformer) / step.folder))
    root = config.root or config.transformer
    for name, file in sorted((_name(file, root), file) for file in files):
        digest.update(name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _tensors(file: Path) -> list[tuple[str, np.ndarray, str]]:
    found = []
    try:
        raw = np.memmap(file, dtype=np.uint8, mode="r")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(raw[8:start].tobytes())
        end_of_last = 0
        for begin, end in sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"):
            if begin != end_of_last or end < begin:
                raise ValueError(f"its tensors do not lie one after the other at byte {begin}")
            end_of_last = end
        if start + end_of_last != len(raw):
            raise ValueError(f"it has {len(raw)} bytes, and its header tells of {start + end_of_last}")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = raw[start + begin : start + end]
            if entry["dtype"] in _DTYPES:
                data = data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
            # What is in another form is kept to be named: most such tensors are buffers that nobody asks for.
            found.append((name, data, str(entry["dtype"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is not a readable safetensors file: {error}") from error
    return found


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name
