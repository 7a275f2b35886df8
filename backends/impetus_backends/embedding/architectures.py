"""The transformers: one function a family, sharing their layers. A new family is a function here and one in `shapes`.

Each returns the vectors of all tokens, (b, l, h), as transformers' model of that family does in its last hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from impetus_backends.embedding.devices.operations import ExpertOps, PlaceOps
from impetus_backends.embedding.distances import distance_buckets, place_buckets
from impetus_backends.embedding.folder.shapes import ALIBI, JINA, STATIC, TABLES
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.devices.operations import Inputs, Ops
    from impetus_backends.embedding.folder.shapes import EncoderConfig

T = TypeVar("T")
_WORDS = "embeddings.word_embeddings.weight"


def encode(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """The vectors of a batch's tokens."""
    if config.model_type == STATIC:
        return ops.embed(TABLES[0], inputs.ids, config.vocab_size)
    if inputs.packed:
        inputs = replace(inputs, mask=ops.apart(inputs.mask))
    if config.model_type == "distilbert":
        return _distilbert(ops, config, inputs)
    if config.model_type == "albert":
        return _albert(ops, config, inputs)
    if config.model_type == JINA:
        return _jina(ops, config, inputs)
    if config.model_type == "mpnet":
        return _mpnet(ops, config, inputs)
    if config.model_type == "deberta-v2":
        if not isinstance(ops, PlaceOps):
            raise BackendUnavailableError("this device runs no DeBERTa; mlx and cpu do")
        made: T = _deberta(ops, config, inputs)
        return made
    if config.model_type in ("nomic_bert", "gte"):
        return _turned(ops, config, inputs)
    if config.model_type == "modernbert":
        return _modernbert(ops, config, inputs)
    if config.model_type in ("t5", "mt5"):
        return _t5(ops, config, inputs)
    if config.model_type in ("qwen3", "qwen2", "mistral", "llama", "eurobert", "gemma3_text"):
        return _decoder(ops, config, inputs)
    return _bert(ops, config, inputs)


def _bert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and ERNIE, which differ in their positions, the width of their
    tokens and ERNIE's tasks alone (arXiv:1810.04805, arXiv:1907.11692, arXiv:2003.10555, arXiv:2107.02137)."""
    x = ops.add(ops.embed(_WORDS, inputs.ids, config.vocab_size), _types(ops, config, inputs))
    if config.tasks:
        x = ops.add(x, ops.row("embeddings.task_type_embeddings.weight", 0))
    x = _placed(ops, config, inputs, x)
    if config.embedding_size not in (0, config.hidden_size):
        x = ops.linear(x, "embeddings_project", config.hidden_size)
    return _post_norm(ops, config, x, inputs.mask, _numbered("encoder.layer", config), _BERT)


def _distilbert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT without token types, under other names (arXiv:1910.01108)."""
    x = _placed(ops, config, inputs, ops.embed(_WORDS, inputs.ids, config.vocab_size))
    return _post_norm(ops, config, x, inputs.mask, _numbered("transformer.layer", config), _DISTILBERT)


def _albert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT whose tokens are always made wider, and whose layers share weights (arXiv:1909.11942)."""
    words = ops.embed(_WORDS, inputs.ids, config.vocab_size)
    x = _placed(ops, config, inputs, ops.add(words, _types(ops, config, inputs)))
    x = ops.linear(x, "encoder.embedding_hidden_mapping_in", config.hidden_size)
    return _post_norm(ops, config, x, inputs.mask, config.layer_names, _ALBERT)


def _jina(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT with gated layers, whose scores fall with the distance of two tokens (arXiv:2310.19923)."""
    x = ops.add(ops.embed(_WORDS, inputs.ids, config.vocab_size), _types(ops, config, inputs))
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


def _mpnet(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """RoBERTa without token types, whose scores also know how far apart two tokens are (arXiv:2004.09297)."""
    x = _placed(ops, config, inputs, ops.embed(_WORDS, inputs.ids, config.vocab_size))
    bias = _distances(ops, config, inputs, "encoder.relative_attention_bias.weight")
    return _post_norm(ops, config, x, inputs.mask, _numbered("encoder.layer", config), _MPNET, bias)


def _t5(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """T5's encoder: norms before, and distances in the scores instead of positions (arXiv:1910.10683)."""
    x = ops.embed("shared.weight", inputs.ids, config.vocab_size)
    bias = _distances(ops, config, inputs, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    for index, attention in enumerate(config.attentions):
        looking, wide = f"encoder.block.{index}.layer.0", f"encoder.block.{index}.layer.1"
        normed = ops.rms_norm(x, f"{looking}.layer_norm", config.norm_eps)
        width = attention.heads * attention.head_size
        q, k, v = (ops.linear(normed, f"{looking}.SelfAttention.{part}", width, bias=False) for part in "qkv")
        mixed = ops.attention(q, k, v, inputs.mask, attention, bias)
        x = ops.add(x, ops.linear(mixed, f"{looking}.SelfAttention.o", config.hidden_size, bias=False))
        normed = ops.rms_norm(x, f"{wide}.layer_norm", config.norm_eps)
        dense = f"{wide}.DenseReluDense"
        first = ops.linear(normed, f"{dense}.{'wi_0' if config.gated else 'wi'}", config.intermediate_size, bias=False)
        first = ops.activate(first, config.activation)
        if config.gated:
            up = ops.linear(normed, f"{dense}.wi_1", config.intermediate_size, bias=False)
            first = ops.multiply(first, up)
        x = ops.add(x, ops.linear(first, f"{dense}.wo", config.hidden_size, bias=False))
    return ops.rms_norm(x, "encoder.final_layer_norm", config.norm_eps)


def _deberta(ops: PlaceOps[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """BERT without positions or token types, whose queries and keys are also held against places: those between a query
    and a key (arXiv:2006.03654, arXiv:2111.09543)."""
    x = ops.layer_norm(ops.embed(_WORDS, inputs.ids, config.vocab_size), "embeddings.LayerNorm", config.norm_eps)
    rows, farthest = config.distances
    buckets = place_buckets(config.longest, rows // 2, farthest)
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


def _distances(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T], table: str) -> T:
    """What the scores are told of how far apart two tokens are."""
    buckets = distance_buckets(config.longest, *config.distances)
    return ops.relative_bias(table, config.distances[0], buckets, inputs.ids)


def _types(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """Which of two texts tokens are of; where there is but one, each is of the first."""
    if inputs.types is None:
        return ops.row("embeddings.token_type_embeddings.weight", 0)
    return ops.embed("embeddings.token_type_embeddings.weight", inputs.types, config.types)


def _placed(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T], x: T) -> T:
    """Tokens with what a table says of their places."""
    places = ops.embed("embeddings.position_embeddings.weight", inputs.positions, config.position_rows)
    return ops.layer_norm(ops.add(x, places), "embeddings.LayerNorm", config.norm_eps)


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


@dataclass(frozen=True, slots=True)
class _TurnedNames:
    """What NomicBERT and GTE call the parts of their layers."""

    embeddings_norm: str
    layers: str
    together: str
    """Queries, keys and values."""
    mixed: str
    mixed_norm: str
    wide: tuple[str, ...]
    """What is let through and what lets it through, in one or in two."""
    narrow: str
    narrow_norm: str


_NOMIC = _TurnedNames(
    embeddings_norm="emb_ln",
    layers="encoder.layers",
    together="attn.Wqkv",
    mixed="attn.out_proj",
    mixed_norm="norm1",
    wide=("mlp.fc11", "mlp.fc12"),
    narrow="mlp.fc2",
    narrow_norm="norm2",
)
_GTE = _TurnedNames(
    embeddings_norm="embeddings.LayerNorm",
    layers="encoder.layer",
    together="attention.qkv_proj",
    mixed="attention.o_proj",
    mixed_norm="attn_ln",
    wide=("mlp.up_gate_proj",),
    narrow="mlp.down_proj",
    narrow_norm="mlp_ln",
)


def _turned(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """NomicBERT and GTE: norms after, as in BERT, angles for positions and gated layers (arXiv:2402.01613,
    arXiv:2407.19669)."""
    hidden, eps = config.hidden_size, config.norm_eps
    for_attention, for_mlp = (part in config.biases for part in ("attention", "mlp"))
    names = _NOMIC if config.model_type == "nomic_bert" else _GTE
    width = 2 * config.intermediate_size // len(names.wide)
    x = ops.embed(_WORDS, inputs.ids, config.vocab_size)
    if config.token_types:
        x = ops.add(x, _types(ops, config, inputs))
    x = ops.layer_norm(x, names.embeddings_norm, eps)
    for index, attention in enumerate(config.attentions):
        layer = f"{names.layers}.{index}"
        q, k, v = ops.split(ops.linear(x, f"{layer}.{names.together}", 3 * hidden, bias=for_attention), 3)
        q, k = (ops.turn(each, inputs.positions, attention) for each in (q, k))
        mixed = ops.attention(q, k, v, inputs.mask, attention)
        mixed = ops.linear(mixed, f"{layer}.{names.mixed}", hidden, bias=for_attention)
        x = ops.layer_norm(ops.add(x, mixed), f"{layer}.{names.mixed_norm}", eps)
        if config.experts:
            narrow = _with_experts(ops, config, x, f"{layer}.mlp", index)
        else:
            wide = [ops.linear(x, f"{layer}.{name}", width, bias=False) for name in names.wide]
            up, gate = wide if len(wide) == 2 else ops.split(wide[0], 2)
            through = ops.multiply(ops.activate(gate, config.activation), up)
            narrow = ops.linear(through, f"{layer}.{names.narrow}", hidden, bias=for_mlp)
        x = ops.layer_norm(ops.add(x, narrow), f"{layer}.{names.narrow_norm}", eps)
    return x


def _with_experts(ops: Ops[T], config: EncoderConfig, x: T, name: str, index: int) -> T:
    """The wide part of a layer of a model some of whose layers have experts (arXiv:2502.07972)."""
    assert config.experts is not None, "only such a model comes here"
    if index % config.experts.every == 1:
        if not isinstance(ops, ExpertOps):
            raise BackendUnavailableError("this device runs no experts; mlx and cpu do")
        made: T = ops.experts(x, name, config.experts, config.intermediate_size, config.activation)
        return made
    wide = ops.activate(ops.linear(x, f"{name}.fc1", config.intermediate_size), config.activation)
    return ops.linear(wide, f"{name}.fc2", config.hidden_size)


def _modernbert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """Norms before, angles for positions, gated layers, and most layers looking nearby alone (arXiv:2412.13663)."""
    hidden, eps = config.hidden_size, config.norm_eps
    for_attention, for_mlp, for_norm = (part in config.biases for part in ("attention", "mlp", "norm"))
    x = ops.embed("embeddings.tok_embeddings.weight", inputs.ids, config.vocab_size)
    x = ops.layer_norm(x, "embeddings.norm", eps, bias=for_norm)
    for index, attention in enumerate(config.attentions):
        layer = f"layers.{index}"
        # The first has its norm already.
        normed = ops.layer_norm(x, f"{layer}.attn_norm", eps, bias=for_norm) if index else x
        q, k, v = ops.split(ops.linear(normed, f"{layer}.attn.Wqkv", 3 * hidden, bias=for_attention), 3)
        q, k = (ops.turn(each, inputs.positions, attention) for each in (q, k))
        mixed = ops.attention(q, k, v, inputs.mask, attention)
        x = ops.add(x, ops.linear(mixed, f"{layer}.attn.Wo", hidden, bias=for_attention))
        normed = ops.layer_norm(x, f"{layer}.mlp_norm", eps, bias=for_norm)
        wide = ops.linear(normed, f"{layer}.mlp.Wi", 2 * config.intermediate_size, bias=for_mlp)
        value, gate = ops.split(wide, 2)
        wide = ops.multiply(ops.activate(value, config.activation), gate)
        x = ops.add(x, ops.linear(wide, f"{layer}.mlp.Wo", hidden, bias=for_mlp))
    return ops.layer_norm(x, "final_norm", eps, bias=for_norm)


def _decoder(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """Llama, EuroBERT, Mistral and Qwen2; Qwen3, whose queries and keys have norms; and Gemma 3, which has norms on
    both sides of everything and its tokens scaled (arXiv:2302.13971, arXiv:2505.09388, arXiv:2503.19786)."""
    gemma, with_norms = config.model_type == "gemma3_text", config.model_type in ("qwen3", "gemma3_text")
    centre = 1.0 if gemma else 0.0
    biased = "attention" in config.biases

    def norm(x: T, name: str, size: int = 0) -> T:
        return ops.rms_norm(x, name, config.norm_eps, size=size, centre=centre)

    x = ops.embed("embed_tokens.weight", inputs.ids, config.vocab_size)
    x = ops.scale(x, config.hidden_size**0.5) if gemma else x
    for index, attention in enumerate(config.attentions):
        layer = f"layers.{index}"
        heads, shared, size = attention.heads, attention.key_value_heads, attention.head_size
        normed = norm(x, f"{layer}.input_layernorm")
        q, k, v = (
            ops.linear(normed, f"{layer}.self_attn.{part}_proj", count * size, bias=biased or "qkv" in config.biases)
            for part, count in (("q", heads), ("k", shared), ("v", shared))
        )
        if with_norms:
            q, k = norm(q, f"{layer}.self_attn.q_norm", size), norm(k, f"{layer}.self_attn.k_norm", size)
        q, k = (ops.turn(x, inputs.positions, attention) for x in (q, k))
        mixed = ops.attention(q, k, v, inputs.mask, attention)
        mixed = ops.linear(mixed, f"{layer}.self_attn.o_proj", config.hidden_size, bias=biased)
        x = ops.add(x, norm(mixed, f"{layer}.post_attention_layernorm") if gemma else mixed)
        before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        wide = _gated(ops, config, norm(x, f"{layer}.{before}"), f"{layer}.mlp")
        x = ops.add(x, norm(wide, f"{layer}.post_feedforward_layernorm") if gemma else wide)
    return norm(x, "norm")


def _gated(ops: Ops[T], config: EncoderConfig, x: T, name: str) -> T:
    """A wide layer whose every unit is let through by another's (arXiv:2002.05202)."""
    gate = ops.activate(ops.linear(x, f"{name}.gate_proj", config.intermediate_size, bias=False), config.activation)
    up = ops.linear(x, f"{name}.up_proj", config.intermediate_size, bias=False)
    return ops.linear(ops.multiply(gate, up), f"{name}.down_proj", config.hidden_size, bias=False)
