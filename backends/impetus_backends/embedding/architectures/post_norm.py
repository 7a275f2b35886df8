"""BERT, and the families whose layers are its: each norm after what it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from impetus_backends.embedding.architectures.parts import WORDS, distance_bias, placed, type_vectors
from impetus_backends.embedding.distances import place_buckets
from impetus_backends.embedding.folder.transformer.shapes import ALIBI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.devices.operations import Inputs, Ops, PlaceOps
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

T = TypeVar("T")


def bert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and ERNIE, which differ in their positions, the width of their
    tokens and ERNIE's tasks alone (arXiv:1810.04805, arXiv:1907.11692, arXiv:2003.10555, arXiv:2107.02137)."""
    x = ops.add(ops.embed(WORDS, inputs.ids, config.vocab_size), type_vectors(ops, config, inputs))
    if config.tasks:
        x = ops.add(x, ops.row("embeddings.task_type_embeddings.weight", 0))
    x = placed(ops, config, inputs, x)
    if config.embedding_size not in (0, config.hidden_size):
        x = ops.linear(x, "embeddings_project", config.hidden_size)
    return _post_norm(ops, config, x, inputs.mask, _numbered("encoder.layer", config), _BERT)


def distilbert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT without token types, under other names (arXiv:1910.01108)."""
    x = placed(ops, config, inputs, ops.embed(WORDS, inputs.ids, config.vocab_size))
    return _post_norm(ops, config, x, inputs.mask, _numbered("transformer.layer", config), _DISTILBERT)


def albert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT whose tokens are always made wider, and whose layers share weights (arXiv:1909.11942)."""
    words = ops.embed(WORDS, inputs.ids, config.vocab_size)
    x = placed(ops, config, inputs, ops.add(words, type_vectors(ops, config, inputs)))
    x = ops.linear(x, "encoder.embedding_hidden_mapping_in", config.hidden_size)
    return _post_norm(ops, config, x, inputs.mask, config.layer_names, _ALBERT)


def jina(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT with gated layers, whose scores fall with the distance of two tokens (arXiv:2310.19923)."""
    x = ops.add(ops.embed(WORDS, inputs.ids, config.vocab_size), type_vectors(ops, config, inputs))
    x = ops.layer_norm(x, "embeddings.LayerNorm", config.norm_eps)
    apart = np.abs(np.arange(-config.longest, config.longest + 1))
    bias = ops.relative_bias(ALIBI, config.distances[0], apart, inputs.ids)
    for index, attention in enumerate(config.attentions):
        layer = f"encoder.layer.{index}"
        q, k, v = (
            ops.linear(x, f"{layer}.attention.self.{part}", config.hidden_size) for part in ("query", "key", "value")
        )
        looked = ops.attention(q, k, v, inputs.mask, attention, bias)
        x = _mixed(ops, config, x, looked, layer, _BERT)
        both = ops.linear(x, f"{layer}.mlp.gated_layers", 2 * config.intermediate_size, bias=False)
        gate, up = ops.split(both, 2)
        narrow = ops.linear(
            ops.multiply(ops.activate(gate, config.activation), up), f"{layer}.mlp.wo", config.hidden_size
        )
        x = ops.layer_norm(ops.add(narrow, x), f"{layer}.mlp.layernorm", config.norm_eps)
    return x


def mpnet(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """RoBERTa without token types, whose scores also know how far apart two tokens are (arXiv:2004.09297)."""
    x = placed(ops, config, inputs, ops.embed(WORDS, inputs.ids, config.vocab_size))
    bias = distance_bias(ops, config, inputs, "encoder.relative_attention_bias.weight")
    return _post_norm(ops, config, x, inputs.mask, _numbered("encoder.layer", config), _MPNET, bias)


def deberta(ops: PlaceOps[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT without positions or token types, whose queries and keys are also held against places: those between a query
    and a key (arXiv:2006.03654, arXiv:2111.09543)."""
    x = ops.layer_norm(ops.embed(WORDS, inputs.ids, config.vocab_size), "embeddings.LayerNorm", config.norm_eps)
    rows, farthest = config.distances
    # Beyond `farthest` all distances are in the last bucket of their side, in texts of any length.
    buckets = place_buckets(max(config.longest, farthest), rows // 2, farthest)
    table = ops.layer_norm(ops.table("encoder.rel_embeddings.weight", rows), "encoder.LayerNorm", config.norm_eps)
    for index, attention in enumerate(config.attentions):
        layer = f"encoder.layer.{index}"
        query, key, value = (f"{layer}.attention.self.{part}_proj" for part in ("query", "key", "value"))
        q, k, v = (ops.linear(x, name, config.hidden_size) for name in (query, key, value))
        places_of_query, places_of_key = (ops.linear(table, name, config.hidden_size) for name in (query, key))
        bias = ops.add(
            ops.toward_places(q, places_of_key, buckets, attention),
            ops.toward_places(k, places_of_query, buckets, attention, of_keys=True),
        )
        x = _post_norm_layer(ops, config, x, ops.attention(q, k, v, inputs.mask, attention, bias), layer, _BERT)
    return x


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
_ALBERT = _Names(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    mixed="attention.dense",
    mixed_norm="attention.LayerNorm",
    wide="ffn",
    narrow="ffn_output",
    narrow_norm="full_layer_layer_norm",
)
_MPNET = _Names(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    mixed="attention.attn.o",
    mixed_norm="attention.LayerNorm",
    wide="intermediate.dense",
    narrow="output.dense",
    narrow_norm="output.LayerNorm",
)


def _numbered(prefix: str, config: EncoderConfig) -> tuple[str, ...]:
    return tuple(f"{prefix}.{index}" for index in range(config.layers))


def _post_norm(
    ops: Ops[T], config: EncoderConfig, x: T, mask: T, layers: Sequence[str], names: _Names, bias: T | None = None
) -> T:
    """The stack of layers of BERT, by their names, each norm after what it is of."""
    for layer, attention in zip(layers, config.attentions, strict=True):
        q, k, v = (
            ops.linear(x, f"{layer}.{part}", config.hidden_size) for part in (names.query, names.key, names.value)
        )
        x = _post_norm_layer(ops, config, x, ops.attention(q, k, v, mask, attention, bias), layer, names)
    return x


def _post_norm_layer(ops: Ops[T], config: EncoderConfig, x: T, looked: T, layer: str, names: _Names) -> T:
    """What a layer makes of its tokens and of what they looked at."""
    x = _mixed(ops, config, x, looked, layer, names)
    wide = ops.activate(ops.linear(x, f"{layer}.{names.wide}", config.intermediate_size), config.activation)
    narrow = ops.linear(wide, f"{layer}.{names.narrow}", config.hidden_size)
    return ops.layer_norm(ops.add(narrow, x), f"{layer}.{names.narrow_norm}", config.norm_eps)


def _mixed(ops: Ops[T], config: EncoderConfig, x: T, looked: T, layer: str, names: _Names) -> T:
    """Tokens with what they looked at."""
    mixed = ops.linear(looked, f"{layer}.{names.mixed}", config.hidden_size)
    return ops.layer_norm(ops.add(mixed, x), f"{layer}.{names.mixed_norm}", config.norm_eps)
