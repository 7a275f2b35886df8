"""The encoder, written once against coarse operations that each device supplies.

Knows how transformer encoders of the BERT family are put together, and no device. A new architecture is one function
here; a new device is one implementation of `Ops`. Weights are referenced by name, so that a device may keep them in
whatever form it likes; no operation asks for a shape, so that shapes may be static or dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from impetus_backends.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.config import EmbeddingConfig, EncoderConfig

T = TypeVar("T")


class Ops(Protocol[T]):
    """What a device supplies. T is its tensor: an array, a graph node, a name. b texts, l tokens, h hidden units."""

    def embed(self, table: str, ids: T) -> T:
        """Rows of the weight `table`: (b, l) integers to (b, l, h)."""
        ...

    def row(self, table: str, index: int) -> T:
        """One row of the weight `table`, to be added to (b, l, h)."""
        ...

    def add(self, a: T, b: T) -> T: ...

    def linear(self, x: T, name: str) -> T:
        """x W^T + bias, with `name.weight` (out, in) and `name.bias` (out)."""
        ...

    def layer_norm(self, x: T, name: str, eps: float) -> T:
        """Over the hidden units, with `name.weight` and `name.bias`."""
        ...

    def gelu(self, x: T) -> T:
        """x * Phi(x), with the error function and not its tanh approximation."""
        ...

    def attention(self, q: T, k: T, v: T, mask: T, heads: int) -> T:
        """softmax(q k^T / sqrt(h / heads)) v in each head; (b, l, h) each; keys whose mask is 0 weigh nothing."""
        ...

    def pool(self, x: T, mask: T, mode: str) -> T:
        """(b, l, h) to (b, h) in float32: the `mean` over tokens whose mask is 1, or the first (`cls`)."""
        ...

    def normalise(self, x: T) -> T:
        """Rows of (b, h) scaled to length 1, a row of zeros left as it is."""
        ...


@dataclass(frozen=True)
class Inputs(Generic[T]):
    """One padded batch: `ids` and `positions` are (b, l) integers, `mask` is (b, l), 1 for tokens and 0 for padding."""

    ids: T
    positions: T
    mask: T


def embed(ops: Ops[T], config: EmbeddingConfig, inputs: Inputs[T]) -> T:
    """The whole model: (b, l) tokens to (b, h) vectors, pooled and scaled as the model's files say."""
    encode = _distilbert if config.encoder.model_type == "distilbert" else _bert
    vectors = ops.pool(encode(ops, config.encoder, inputs), inputs.mask, config.pooling.mode)
    return ops.normalise(vectors) if config.pooling.normalise else vectors


def _bert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT, RoBERTa and XLM-RoBERTa, which differ in their positions alone (arXiv:1810.04805, arXiv:1907.11692)."""
    words = ops.embed("embeddings.word_embeddings.weight", inputs.ids)
    # Only one sentence at a time is embedded, so every token is of type 0.
    types = ops.row("embeddings.token_type_embeddings.weight", 0)
    places = ops.embed("embeddings.position_embeddings.weight", inputs.positions)
    x = ops.layer_norm(ops.add(ops.add(words, types), places), "embeddings.LayerNorm", config.layer_norm_eps)
    return _layers(ops, config, x, inputs.mask, "encoder.layer", _BERT)


def _distilbert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """DistilBERT: BERT without token types, under other names (arXiv:1910.01108)."""
    words = ops.embed("embeddings.word_embeddings.weight", inputs.ids)
    places = ops.embed("embeddings.position_embeddings.weight", inputs.positions)
    x = ops.layer_norm(ops.add(words, places), "embeddings.LayerNorm", config.layer_norm_eps)
    return _layers(ops, config, x, inputs.mask, "transformer.layer", _DISTILBERT)


@dataclass(frozen=True, slots=True)
class _Names:
    """What an architecture calls the parts of its layers."""

    query: str
    key: str
    value: str
    mixed: str
    mixed_norm: str
    wide: str
    narrow: str
    narrow_norm: str


_BERT = _Names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    mixed="attention.output.dense",
    mixed_norm="attention.output.LayerNorm",
    wide="intermediate.dense",
    narrow="output.dense",
    narrow_norm="output.LayerNorm",
)
_DISTILBERT = _Names(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    mixed="attention.out_lin",
    mixed_norm="sa_layer_norm",
    wide="ffn.lin1",
    narrow="ffn.lin2",
    narrow_norm="output_layer_norm",
)


def _layers(ops: Ops[T], config: EncoderConfig, x: T, mask: T, prefix: str, names: _Names) -> T:
    """The stack of post-norm transformer layers that all of these share."""
    for index in range(config.layers):
        layer = f"{prefix}.{index}"
        q, k, v = (ops.linear(x, f"{layer}.{part}") for part in (names.query, names.key, names.value))
        mixed = ops.linear(ops.attention(q, k, v, mask, config.heads), f"{layer}.{names.mixed}")
        x = ops.layer_norm(ops.add(mixed, x), f"{layer}.{names.mixed_norm}", config.layer_norm_eps)
        wide = ops.gelu(ops.linear(x, f"{layer}.{names.wide}"))
        narrow = ops.linear(wide, f"{layer}.{names.narrow}")
        x = ops.layer_norm(ops.add(narrow, x), f"{layer}.{names.narrow_norm}", config.layer_norm_eps)
    return x


def pad(config: EncoderConfig, rows: Sequence[np.ndarray], *, batch: int = 0, length: int = 0) -> Inputs[np.ndarray]:
    """Token rows as one padded batch of at least `batch` texts of at least `length` tokens.

    `ids` and `positions` come back as int32, `mask` as float32. Raises `RequestError` for a row that the model cannot
    read: empty, too long, or with a token outside the vocabulary (which some devices would read past the table for).
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if not len(rows) or lengths.min() < 1 or lengths.max() > config.longest:
        sizes = f"{lengths.min()} to {lengths.max()} tokens" if len(rows) else "no rows at all"
        raise RequestError(f"got {sizes}; each row must be of 1 to {config.longest}")
    ids = np.full((max(batch, len(rows)), max(length, int(lengths.max()))), config.padding_id, dtype=np.int32)
    mask = np.zeros(ids.shape, dtype=np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise RequestError(f"a token is outside the vocabulary of {config.vocab_size}; is this the model's tokenizer?")
    # A text of padding alone would divide by no tokens at all.
    mask[len(rows) :, 0] = 1
    return Inputs(ids, positions(config, ids), mask)


def positions(config: EncoderConfig, ids: np.ndarray) -> np.ndarray:
    """Where each token stands, (b, l) int32. In RoBERTa tokens that read as padding do not count, wherever they are."""
    if not config.counts_padding:
        return np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    counts = ids != config.padding_id
    places: np.ndarray = np.cumsum(counts, axis=1) * counts + config.padding_id
    return places.astype(np.int32)
