"""The model, written once: tokens in, a transformer, pooling and what follows, vectors out.

Knows no device; `operations` says what one supplies, and `architectures` knows the transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from impetus_backends.embedding.architectures.encode import encode
from impetus_backends.embedding.devices.operations import Inputs
from impetus_backends.embedding.folder.sparse import LEXICAL, Lexical
from impetus_backends.embedding.modules import Dense, LayerNorm, Linear, Logit, Norm
from impetus_backends.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from impetus_backends.embedding.devices.operations import Ops, SparseOps
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig
    from impetus_backends.protocol import Spans

T = TypeVar("T")
PROMPT = 1 << 30
"""Added to a token's id: it is read, and not pooled. Rows carry it for models that leave their prompts out."""
SECOND = 1 << 29
"""Added to a token's id: it is of the second of two texts. Rows carry it for models that tell the two apart so."""


def embed(ops: Ops[T], config: EmbeddingConfig, inputs: Inputs[T]) -> T:
    """The whole model: (b, l) tokens to (b, dimensions), pooled and finished as the model's files say."""
    x = encode(ops, config.encoder, inputs)
    pooled = [
        (ops.largest if mode == "max" else ops.pool)(x, inputs.shares, index)
        for index, mode in enumerate(config.pooling.modes)
    ]
    vectors = pooled[0] if len(pooled) == 1 else ops.join(pooled)
    for step in config.steps:
        if isinstance(step, Dense | Linear | Logit):
            vectors = ops.project(vectors, step.name, step.outputs, bias=step.bias)
            vectors = ops.bend(vectors, step.activation) if step.activation else vectors
        elif isinstance(step, Norm | LayerNorm):
            vectors = ops.norm(vectors, step.name, step.eps, bias=step.bias)
        else:
            vectors = ops.normalise(vectors)
    return vectors if config.truncate is None else ops.first(vectors, config.dimensions)


def weigh(ops: SparseOps[T], config: EmbeddingConfig, inputs: Inputs[T]) -> T:
    """The model with its sparse head: (b, vocabulary) weights, or (b, l, 1) where only the text's own tokens have any.

    `sparse.vectors` makes sparse vectors of either.
    """
    head = config.sparse
    x = encode(ops, config.encoder, inputs)
    if isinstance(head, Lexical):
        return ops.activate(ops.linear(x, LEXICAL, 1), "relu")
    assert head is not None, "only a model with such a head weighs"
    x = ops.activate(ops.linear(x, head.dense, config.encoder.hidden_size, bias=head.dense_bias), head.activation)
    x = ops.layer_norm(x, head.norm, config.encoder.norm_eps, bias=head.norm_bias)
    kinds = ["relu", *["log1p"] * head.logarithms]

    def pooled(part: T, shares: T) -> T:
        logits = ops.linear(part, head.decoder, config.encoder.vocab_size, bias=head.decoder_bias)
        if not head.summed:
            return ops.largest(logits, shares, 0)
        for kind in kinds:
            logits = ops.activate(logits, kind)
        return ops.pool(logits, shares, 0)

    x = ops.by_parts(x, inputs.shares, config.encoder.vocab_size, pooled, summed=head.summed)
    # All of these rise: of the largest logit they are the largest.
    for kind in () if head.summed else kinds:
        x = ops.bend(x, kind)
    return x


def pad(
    config: EmbeddingConfig,
    rows: Sequence[np.ndarray],
    *,
    batch: int = 0,
    length: int = 0,
    chunks: Sequence[Spans] | None = None,
) -> Inputs[np.ndarray]:
    """Token rows as one padded batch of at least `batch` texts of at least `length` tokens.

    `chunks`: for each row those of which a vector each is wanted, in place of one of the whole; `vectors_of` says where
    they come out. `ids`, `positions` and `types` come back as int32, the others as float32. Raises `RequestError` for a
    row that the model cannot read: empty, too long, or with a token outside the vocabulary (which some devices would
    read past the table for).
    """
    shape = config.encoder
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    longest = max(shape.longest, config.text.max_tokens)
    if not len(rows) or lengths.min() < 1 or lengths.max() > longest:
        sizes = f"{lengths.min()} to {lengths.max()} tokens" if len(rows) else "no rows at all"
        raise RequestError(f"got {sizes}; each row must be of 1 to {longest}")
    ids = np.full((max(batch, len(rows)), max(length, int(lengths.max()))), shape.padding_id, dtype=np.int32)
    mask = np.zeros(ids.shape, dtype=np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    pooled: npt.NDArray[np.float32] = mask
    types = (ids & SECOND > 0).astype(np.int32) if shape.types else None
    if ids.max() >= SECOND:
        pooled = mask * (ids < PROMPT)
        ids &= SECOND - 1
    if ids.min() < 0 or ids.max() >= shape.vocab_size:
        raise RequestError(f"a token is outside the vocabulary of {shape.vocab_size}; is this the model's tokenizer?")
    # A text of padding alone would divide by no tokens at all.
    mask[len(rows) :, 0] = pooled[len(rows) :, 0] = 1
    shares = np.stack([_shares(mode, pooled) for mode in config.pooling.modes], axis=1)[:, :, None]
    if chunks is not None:
        shares = _of_chunks(shares, chunks)
    return Inputs(ids, positions(shape, ids), mask, shares, types)


def refuses_chunks(config: EmbeddingConfig) -> str | None:
    """Why a model makes no vectors of chunks, in a clause.

    Late chunking (arXiv:2409.04701): the text goes through the model as a whole, and of each chunk's tokens the mean is
    taken after it. So it takes a model that was trained for the mean of tokens.
    """
    if config.pooling.modes == ("mean",):
        return None
    return f"it pools by {' and '.join(config.pooling.modes)}, and a chunk is the mean of its tokens"


def vectors_of(chunks: Sequence[Spans]) -> np.ndarray:
    """Which of the vectors of such a batch are of chunks, or of rows without any, in their order."""
    texts = _most(chunks)
    found: np.ndarray = np.concatenate([row * texts + np.arange(len(spans) or 1) for row, spans in enumerate(chunks)])
    return found


def _most(chunks: Sequence[Spans]) -> int:
    return max(max(map(len, chunks)), 1)


def _of_chunks(whole: npt.NDArray[np.float32], chunks: Sequence[Spans]) -> npt.NDArray[np.float32]:
    """The shares of each row's chunks in place of those of the whole, where it has any."""
    rows, modes, _, length = whole.shape
    shares = np.zeros((rows, modes, _most(chunks), length), dtype=np.float32)
    shares[:, :, :1] = whole
    for row, spans in enumerate(chunks):
        for number, (begin, end) in enumerate(spans):
            shares[row, :, number] = 0
            shares[row, :, number, begin:end] = 1 / (end - begin)
    return shares


def packable(config: EmbeddingConfig) -> bool:
    """Whether rows may hold several texts: not where the largest of tokens is taken, nor of pairs of texts."""
    return not config.encoder.types and "max" not in config.pooling.modes


def pack(
    config: EmbeddingConfig,
    groups: Sequence[Sequence[np.ndarray]],
    *,
    texts: int,
    length: int,
    batch: int = 0,
) -> Inputs[np.ndarray]:
    """Several texts in each row, at most `texts`, end to end in `length` tokens: positions begin anew with each.

    The vector of a group's n-th text is the (row * texts + n)-th. Raises `RequestError` as `pad` does.
    """
    alone = pad(config, [row for group in groups for row in group])
    shape = (max(batch, len(groups)), length)
    ids = np.full(shape, config.encoder.padding_id, dtype=np.int32)
    places, numbers = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    shares = np.zeros((shape[0], len(config.pooling.modes), texts, length), dtype=np.float32)
    at = 0
    for index, group in enumerate(groups):
        begin = 0
        for number, row in enumerate(group):
            here = slice(begin, begin := begin + len(row))
            ids[index, here] = alone.ids[at, : len(row)]
            places[index, here] = alone.positions[at, : len(row)]
            numbers[index, here] = number + 1
            shares[index, :, number, here] = alone.shares[at, :, 0, : len(row)]
            at += 1
    return Inputs(ids, places, numbers, shares, packed=True)


def _shares(mode: str, pooled: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How much of each token (b, l) goes into a vector; for `max`, whether it is looked at."""
    if mode == "max":
        return pooled
    if mode == "mean_sqrt_len_tokens":
        return _divided(pooled, np.sqrt(pooled.sum(axis=1, keepdims=True)))
    places = np.arange(1, pooled.shape[1] + 1, dtype=np.float32)
    if mode == "cls":  # the first of all where none is to be pooled, as in sentence-transformers
        first: npt.NDArray[np.float32] = (places == pooled.argmax(axis=1)[:, None] + 1).astype(np.float32)
        return first
    if mode == "lasttoken":
        found = pooled * places
        return np.where(found == found.max(axis=1, keepdims=True), pooled, np.float32(0))
    weights = pooled * places if mode == "weightedmean" else pooled
    return _divided(weights, weights.sum(axis=1, keepdims=True))


def _divided(weights: npt.NDArray[np.float32], by: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    divided: npt.NDArray[np.float32] = (weights / np.maximum(by, 1e-9)).astype(np.float32)
    return divided


def positions(config: EncoderConfig, ids: np.ndarray) -> np.ndarray:
    """Where each token stands, (b, l) int32. In RoBERTa tokens that read as padding do not count, wherever they are."""
    if config.uncounted_id is None:
        return np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    counts = ids != config.uncounted_id
    places: np.ndarray = np.cumsum(counts, axis=1) * counts + config.uncounted_id
    return places.astype(np.int32)
