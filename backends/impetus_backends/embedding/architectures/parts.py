"""What families of several kinds share: what is known of a token before the first layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from impetus_backends.embedding.distances import distance_buckets

if TYPE_CHECKING:
    from impetus_backends.embedding.devices.operations import Inputs, Ops
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

T = TypeVar("T")
WORDS = "embeddings.word_embeddings.weight"


def distance_bias(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T], table: str) -> T:
    """What the scores are told of how far apart two tokens are."""
    buckets = distance_buckets(config.longest, *config.distances)
    return ops.relative_bias(table, config.distances[0], buckets, inputs.ids)


def type_vectors(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """Which of two texts tokens are of; where there is but one, each is of the first."""
    if inputs.types is None:
        return ops.row("embeddings.token_type_embeddings.weight", 0)
    return ops.embed("embeddings.token_type_embeddings.weight", inputs.types, config.types)


def placed(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T], x: T) -> T:
    """Tokens with what a table says of their places."""
    places = ops.embed("embeddings.position_embeddings.weight", inputs.positions, config.position_rows)
    return ops.layer_norm(ops.add(x, places), "embeddings.LayerNorm", config.norm_eps)
