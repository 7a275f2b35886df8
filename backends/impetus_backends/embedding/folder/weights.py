"""A model's weights as numpy arrays in float32, looked up by the names that the encoder uses."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.folder.files import read_json
from impetus_backends.embedding.folder.sparse import LEXICAL, Lexical, Splade
from impetus_backends.embedding.folder.static import MAPPING, SHARES
from impetus_backends.embedding.folder.stored.packed import Packed, packed, read_packings
from impetus_backends.embedding.folder.stored.tensors import (
    DTYPES,
    INDEX_FILE,
    WHOLE_FILE,
    WORDS,
    read_tensors,
    weight_files,
)
from impetus_backends.embedding.folder.transformer.shapes import ALIBI, JINA, STATIC, TABLES, alibi
from impetus_backends.embedding.modules import Dense, LayerNorm, Logit
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig

_PREFIXES = (
    "bert.",
    "distilbert.",
    "roberta.",
    "electra.",
    "ernie.",
    "albert.",
    "mpnet.",
    "deberta.",
    "nomic_bert.",
    "gte.",
    "new.",
    "model.",
)
# The first BERT checkpoints were converted from TensorFlow and kept its names.
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_LANGUAGE_HEAD = "lm_head.weight"
_TOKENIZER_FILES = (
    *("*.model", "*.tiktoken", "*.txt", "tokenizer*.json", "vocab.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A tensor as it is stored, and what it is stored as."""

    tensor: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def rows(self, which: slice) -> _Plain:
        return _Plain(self.tensor[which], self.dtype)

    def values(self) -> np.ndarray:
        """In float32, contiguous."""
        if self.dtype == "BF16":
            return (self.tensor.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(self.tensor, dtype=np.float32)


class Weights:
    """The tensors of one model by name, `bert.` and its like stripped. Unknown names raise `ModelError`.

    Matrices that MLX quantised are made whole when they are asked for; `packed` is for who computes with them as they
    are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, _Plain | Packed] = {}
        self._add(folder, "")

    @classmethod
    def of(cls, config: EmbeddingConfig) -> Weights:
        """Those of the whole model: a dense layer's go by the name of its folder."""
        weights = cls(config.transformer)
        for step in dict.fromkeys(config.steps):  # one may be taken twice
            if isinstance(step, Dense | LayerNorm):
                weights._add((config.root or config.transformer) / step.folder, f"{step.folder}/")
            elif isinstance(step, Logit):
                weights._tensors[step.name + ".weight"] = _Plain(weights._difference(step), "F32")
        if config.encoder.model_type == STATIC and (weights.has(MAPPING) or weights.has(SHARES)):
            weights._tensors[TABLES[0]] = _Plain(weights._unfolded(), "F32")
        if config.encoder.model_type in ("t5", "mt5"):
            weights._tie("encoder.embed_tokens.weight", "shared.weight")
            weights._tensors.pop("shared.weight", None)  # which would be its decoder's
        if config.encoder.model_type == JINA:
            weights._tensors[ALIBI] = _Plain(alibi(config.encoder.heads, config.encoder.distances[0]), "F32")
        if isinstance(config.sparse, Lexical):
            weights._read([config.transformer / f"{LEXICAL}.safetensors"], f"{LEXICAL}.")
        elif isinstance(config.sparse, Splade):
            for name, source in config.sparse.tied:
                weights._tie(name, source)
        return weights

    def _tie(self, one: str, other: str) -> None:
        """Whichever of two tensors a file lacks is as the other. Where it has both, each is its own: so transformers
        has it since its fifth version."""
        for lacking, there in ((one, other), (other, one)):
            if there in self._tensors:
                self._tensors.setdefault(lacking, self._tensors[there])

    def _add(self, folder: Path, prefix: str) -> None:
        self._read(weight_files(folder), prefix)
        self._unite(folder, prefix)

    def _read(self, files: Sequence[Path], prefix: str) -> None:
        for file in files:
            for name, tensor, dtype in read_tensors(file):
                plain = prefix + _plain(name)
                if plain in self._tensors:
                    raise ModelError(f"the weights in {file.parent} hold {plain} twice, under two names")
                self._tensors[plain] = _Plain(tensor, dtype)

    def _unite(self, folder: Path, prefix: str) -> None:
        """Words, scales and biases of a quantised matrix become one."""
        words = {name.removesuffix(".weight"): each for name, each in self._tensors.items()
                 if isinstance(each, _Plain) and each.dtype == WORDS and name.startswith(prefix)}  # fmt: skip
        modules = [module for module in words if f"{module}.scales" in self._tensors]
        if not modules:
            return
        file = folder / "config.json"
        stated = read_packings(file, read_json(file, dict))
        packings = {_plain(f"{name}.weight").removesuffix(".weight"): each for name, each in stated.items() if name}
        for module in modules:
            if "" not in stated:
                raise ModelError(f"{file} does not say how {module} was quantised: it has no quantization")
            scales, biases = (self[f"{module}.{part}"] for part in ("scales", "biases"))
            packing = packings.get(module.removeprefix(prefix), stated[""])
            try:
                self._tensors[f"{module}.weight"] = packed(module, words[module].tensor, scales, biases, packing)
            except ValueError as error:
                raise ModelError(f"the weights in {folder} do not fit its config.json: {error}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, not yet read; raises `ModelError` where it is missing or stored in a form not read here."""
        found = self._find(name)
        if isinstance(found, _Plain) and found.dtype not in DTYPES:
            raise ModelError(
                f"the weights in {self._folder} hold {name} as {found.dtype}, and {', '.join(DTYPES)} are read: "
                "take a copy of the model that is not quantised"
            )
        return found.shape

    def packed(self, name: str) -> Packed | None:
        """A matrix as it is stored, if it is quantised."""
        found = self._find(name)
        return found if isinstance(found, Packed) else None

    def has(self, name: str) -> bool:
        return name in self._tensors

    def size_bytes(self) -> int:
        """What all of them take in float32."""
        read = (each for each in self._tensors.values() if isinstance(each, Packed) or each.dtype in DTYPES)
        return 4 * sum(math.prod(each.shape) for each in read)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor, float32 and contiguous."""
        self.shape(name)
        return self._find(name).values()

    def _difference(self, step: Logit) -> np.ndarray:
        """The weights of the one number that `step` makes, (1, hidden)."""
        table = _LANGUAGE_HEAD if self.has(_LANGUAGE_HEAD) else step.table
        rows = [self._row(table, each) for each in (step.yes, step.no) if each is not None]
        return rows[0] if len(rows) == 1 else rows[0] - rows[1]

    def _unfolded(self) -> np.ndarray:
        """A table of model2vec with a row for each token (vocabulary, hidden)."""
        table = self._find(TABLES[0]).values()
        mapping, shares = self._tensors.get(MAPPING), self._tensors.get(SHARES)
        if isinstance(mapping, _Plain):
            table = table[mapping.tensor]
        return table if shares is None else table * shares.values()[:, None]

    def _row(self, table: str, index: int) -> np.ndarray:
        shape = self.shape(table)
        if len(shape) != 2 or shape[0] <= index:
            raise ModelError(f"the weights in {self._folder} have no row {index} of {table}")
        return self._find(table).rows(slice(index, index + 1)).values()

    def _find(self, name: str) -> _Plain | Packed:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"the weights in {self._folder} have no tensor {name}") from None


def fingerprint(config: EmbeddingConfig) -> str:
    """Sixteen hex digits of a SHA-256 over all that decides a vector: what the files say, and every file read."""
    digest = hashlib.sha256(repr((config.encoder, config.pooling, config.text, config.steps, config.truncate)).encode())
    files = set(config.files)
    if config.further:  # what packages were made of stays what it was
        digest.update(repr(config.further).encode())
    if isinstance(config.sparse, Lexical):
        files.add(config.transformer / f"{LEXICAL}.safetensors")
    for pattern in _TOKENIZER_FILES:
        files.update(config.transformer.glob(pattern))
    root = config.root or config.transformer
    parts = [root / step.folder for step in config.steps if isinstance(step, Dense | LayerNorm)]
    for folder in (config.transformer, *parts):
        found = weight_files(folder)
        files.update(found, () if found == [folder / WHOLE_FILE] else [folder / INDEX_FILE])
    for name, file in sorted((_name(file, root), file) for file in files):
        digest.update(name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _plain(name: str) -> str:
    if name in TABLES:
        return TABLES[0]
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name
