"""The shape of one transformer, as its `config.json` states it: one function a family. Nothing is guessed.

Defaults are those of transformers' configuration classes, for files that leave a key out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import flag, positive
from impetus_backends.embedding.folder.stored.packed import read_packings
from impetus_backends.embedding.folder.transformer.angles import read_angles
from impetus_backends.embedding.folder.transformer.facts import (
    ACTIVATIONS,
    BERT_KEYS,
    FAR,
    NEAR,
    even_heads,
    read_eps,
    read_kinds,
    read_padding,
    read_sizes,
    refuse_twice,
    refuse_unless,
    stated_padding,
)
from impetus_backends.embedding.folder.transformer.shapes import JINA, Attention, EncoderConfig
from impetus_backends.embedding.folder.transformer.turned import read_new, read_turned
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The same five facts under the two vocabularies of Hugging Face configurations.
_DISTILBERT_KEYS = ("dim", "n_layers", "n_heads", "hidden_dim", "activation")
_MODERN_KEYS = (*BERT_KEYS[:4], "hidden_activation")
_JINA_CODE = "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"
_T5_KEYS = ("d_model", "num_layers", "num_heads")
_T5_LONGEST = 8192
"""Its distances end nowhere: so many tokens are enough."""
_POSITIONS_COUNTED = ("roberta", "xlm-roberta", "camembert")


def read_shape(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """Raises `ModelError` for a family that is not known, and for whatever this one would run wrongly."""
    model_type = raw.get("model_type")
    is_jinas = model_type == "bert" and raw.get("position_embedding_type") == "alibi"
    read = _jina if is_jinas else FAMILIES.get(str(model_type))
    if read is None:
        raise ModelError(f"{file}: model_type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    refuse_unless(
        file,
        raw,
        is_decoder=(None, False),
        add_cross_attention=(None, False),
        # Some families' own code is what transformers has taken over, and files still name it; Jina's is looked at.
        auto_map=(None, {}, *([raw.get("auto_map")] if model_type in _TAKEN_OVER or is_jinas else [])),
    )
    read_packings(file, raw)
    if read not in (_causal, _gemma3):
        refuse_unless(file, raw, is_causal=(None, False))
    return read(file, raw)


def _bert(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """BERT, and what differs from it in names and positions alone."""
    refuse_unless(file, raw, position_embedding_type=(None, "absolute"))
    distilled = raw["model_type"] == "distilbert"
    if distilled:
        refuse_twice(file, raw, dict(zip(BERT_KEYS[:3], _DISTILBERT_KEYS[:3], strict=True)))
    sizes = read_sizes(file, raw, _DISTILBERT_KEYS if distilled else BERT_KEYS)
    uncounted_id = None
    if raw["model_type"] in _POSITIONS_COUNTED:
        uncounted_id = stated_padding(file, raw)
        if uncounted_id is None:
            raise ModelError(
                f"{file} has no pad_token_id of its vocabulary, on which {raw['model_type']} positions rest"
            )
    return EncoderConfig(
        **sizes,
        # transformers' modeling_distilbert.py writes 1e-12 into the code.
        norm_eps=1e-12 if distilled else read_eps(file, raw, "layer_norm_eps"),
        uncounted_id=uncounted_id,
        embedding_size=positive(file, raw, "embedding_size", 128) if raw["model_type"] == "electra" else 0,
        attentions=(even_heads(file, sizes),) * sizes["layers"],
        tasks=raw["model_type"] == "ernie" and flag(file, raw, "use_task_id", False),
    )


def _albert(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """BERT whose layers share their weights, all of them or in groups, and whose tokens are narrower than they."""
    refuse_unless(file, raw, position_embedding_type=(None, "absolute"))
    sizes = read_sizes(file, raw)
    groups, inner = (positive(file, raw, key, 1) for key in ("num_hidden_groups", "inner_group_num"))
    if groups > sizes["layers"]:
        raise ModelError(f"{file}: {sizes['layers']} layers are not of {groups} groups")
    names = tuple(
        # As transformers divides them, in floating point.
        f"encoder.albert_layer_groups.{int(layer / (sizes['layers'] / groups))}.albert_layers.{index}"
        for layer in range(sizes["layers"])
        for index in range(inner)
    )
    return EncoderConfig(
        **{**sizes, "layers": len(names)},
        norm_eps=read_eps(file, raw, "layer_norm_eps"),
        embedding_size=positive(file, raw, "embedding_size", 128),
        attentions=(even_heads(file, sizes),) * len(names),
        layer_names=names,
    )


def _jina(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """Jina's BERT: distances that lower scores instead of positions, and gated layers. It says that it is a `bert`, and
    by whose code it is run, of which there are several."""
    code = (raw.get("auto_map") or {}).get("AutoModel")
    if code != _JINA_CODE:
        raise ModelError(f"{file}: position_embedding_type 'alibi' of {code} is not supported; that of {_JINA_CODE} is")
    refuse_unless(file, raw, feed_forward_type=("geglu", "reglu"))
    sizes = read_sizes(file, raw)
    return EncoderConfig(
        **{**sizes, "model_type": JINA, "activation": "gelu" if raw["feed_forward_type"] == "geglu" else "relu"},
        norm_eps=read_eps(file, raw, "layer_norm_eps"),
        # Every distance has a share of its own.
        distances=(sizes["position_rows"] + 1, sizes["position_rows"]),
        attentions=(even_heads(file, sizes),) * sizes["layers"],
    )


def _mpnet(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    # transformers' modeling_mpnet.py writes both into the code, whatever the file says.
    refuse_unless(file, raw, relative_attention_num_buckets=(None, 32), pad_token_id=(None, 1))
    sizes: dict[str, Any] = {**read_sizes(file, raw), "padding_id": 1}
    return EncoderConfig(
        **sizes,
        norm_eps=read_eps(file, raw, "layer_norm_eps"),
        uncounted_id=1,
        attentions=(even_heads(file, sizes),) * sizes["layers"],
    )


def _deberta(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """DeBERTa as its third version is made: relative positions alone, whose weights are those of tokens too."""
    sizes = read_sizes(file, raw)
    parts = raw.get("pos_att_type")
    parts = parts.lower().split("|") if isinstance(parts, str) else parts
    if not isinstance(parts, list) or sorted(map(str, parts)) != ["c2p", "p2c"]:
        raise ModelError(f"{file}: pos_att_type {raw.get('pos_att_type')!r} is not supported; supported is p2c|c2p")
    refuse_unless(
        file,
        raw,
        relative_attention=(True,),
        position_biased_input=(False,),
        share_att_key=(True,),
        norm_rel_ebd=("layer_norm",),
        conv_kernel_size=(None, 0),
        type_vocab_size=(None, 0),
        embedding_size=(None, sizes["hidden_size"]),
        pooler_hidden_size=(None, sizes["hidden_size"]),
        attention_head_size=(None, sizes["hidden_size"] // sizes["heads"]),
    )
    farthest = raw.get("max_relative_positions", -1)
    if not isinstance(farthest, int) or farthest < 1:
        farthest = sizes["position_rows"]
    buckets = positive(file, raw, "position_buckets")
    if buckets % 2 or farthest <= buckets // 2 + 1:
        raise ModelError(f"{file}: {buckets} position_buckets do not hold distances of up to {farthest} tokens")
    even = even_heads(file, sizes)
    return EncoderConfig(
        **sizes,
        norm_eps=read_eps(file, raw, "layer_norm_eps"),
        token_types=False,
        distances=(2 * buckets, farthest),
        # Scores are sums of three products.
        attentions=(replace(even, scale=(3 * even.head_size) ** -0.5),) * sizes["layers"],
    )


def _modernbert(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    sizes = read_sizes(file, raw, _MODERN_KEYS)
    every = positive(file, raw, "global_attn_every_n_layers", 3)
    base = even_heads(file, sizes)
    near = replace(base, window=positive(file, raw, "local_attention", 128) // 2)
    near = read_angles(file, raw, near, "local_rope_theta", 10_000.0, kind=NEAR)
    far = read_angles(file, raw, base, "global_rope_theta", 160_000.0, kind=FAR)
    kinds = read_kinds(file, raw, [NEAR if index % every else FAR for index in range(sizes["layers"])])
    return EncoderConfig(
        **sizes,
        norm_eps=read_eps(file, raw, "norm_eps"),
        attentions=tuple(far if kind == FAR else near for kind in kinds),
        biases=tuple(part for part in ("attention", "mlp", "norm") if flag(file, raw, f"{part}_bias", False)),
    )


def _causal(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """Language models whose tokens see what came before them, or all where the file says so: Qwen 2 and 3, Mistral,
    Llama; and EuroBERT, which is a Llama whose tokens see all."""
    refuse_unless(file, raw, use_sliding_window=(None, False), mlp_bias=(None, False))
    refuse_unless(file, raw, use_bidirectional_attention=(None, False))
    if raw["model_type"] == "eurobert":
        refuse_unless(file, raw, is_causal=(None, False))
    causal = raw["model_type"] != "eurobert" and flag(file, raw, "is_causal", True)
    sizes = read_sizes(file, raw)
    # Mistral alone has all its layers look nearby, where its file says how far.
    window = raw.get("sliding_window") if raw["model_type"] == "mistral" else None
    if window is not None and not causal:
        raise ModelError(f"{file}: is_causal False beside a sliding_window is not supported")
    usual = FAR if window is None else NEAR
    if set(read_kinds(file, raw, [usual] * sizes["layers"])) != {usual}:
        raise ModelError(f"{file}: layer_types {raw['layer_types']} are not supported")
    base = replace(
        _grouped(file, raw, sizes),
        causal=causal,
        window=0 if window is None else positive(file, raw, "sliding_window") - 1,
    )
    found = _decoder(file, raw, sizes, [read_angles(file, raw, base, "rope_theta")] * sizes["layers"])
    return replace(found, biases=("qkv",)) if raw["model_type"] == "qwen2" else found


def _gemma3(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    refuse_unless(file, raw, attn_logit_softcapping=(None,), is_causal=(None,))
    sizes = read_sizes(file, raw, _MODERN_KEYS)
    every = positive(file, raw, "sliding_window_pattern", positive(file, raw, "_sliding_window_pattern", 6))
    causal = not flag(file, raw, "use_bidirectional_attention", False)
    window = positive(file, raw, "sliding_window", 4096)
    scale = positive(file, raw, "query_pre_attn_scalar", 256) ** -0.5
    base = replace(_grouped(file, raw, sizes), causal=causal, scale=scale)
    far = read_angles(file, raw, base, "rope_theta", 1_000_000.0, kind=FAR)
    near = replace(base, window=window - 1 if causal else window // 2)
    near = read_angles(file, raw, near, "rope_local_base_freq", 10_000.0, kind=NEAR, scaled=False)
    kinds = read_kinds(file, raw, [NEAR if (index + 1) % every else FAR for index in range(sizes["layers"])])
    return _decoder(file, raw, sizes, [far if kind == FAR else near for kind in kinds])


def _decoder(file: Path, raw: dict[str, Any], sizes: dict[str, Any], attentions: list[Attention]) -> EncoderConfig:
    return EncoderConfig(
        **sizes,
        norm_eps=read_eps(file, raw, "rms_norm_eps"),
        attentions=tuple(attentions),
        biases=("attention",) if flag(file, raw, "attention_bias", False) else (),
    )


def _grouped(file: Path, raw: dict[str, Any], sizes: dict[str, Any]) -> Attention:
    """Heads of a size of their own, several of which share keys and values."""
    heads = sizes["heads"]
    shared = positive(file, raw, "num_key_value_heads", heads)
    # Files of Llama and its like may state none.
    even = None if raw.get("head_dim") or sizes["model_type"] not in _PLAIN else even_heads(file, sizes)
    size = even.head_size if even else positive(file, raw, "head_dim")
    if heads % shared:
        raise ModelError(f"{file}: {heads} heads do not share {shared} of keys and values")
    return Attention(heads, shared, size, size**-0.5)


def _t5(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """T5's encoder, whose attention is not scaled and which knows distances and no positions."""
    form = raw.get("feed_forward_proj", "relu")
    gated, _, activation = str(form).rpartition("-")
    # transformers reads gated-gelu as the approximation, which it was trained with.
    activation = "gelu_new" if form == "gated-gelu" else activation
    if gated not in ("", "gated") or activation not in ACTIVATIONS:
        raise ModelError(f"{file}: feed_forward_proj {form!r} is not supported")
    # transformers follows these where a file has them, and writes them to agree.
    refuse_unless(file, raw, is_gated_act=(None, bool(gated)), dense_act_fn=(None, activation))
    refuse_twice(file, raw, {**dict(zip(BERT_KEYS[:3], _T5_KEYS, strict=True)), "head_dim": "d_kv"})
    hidden, layers, heads = (positive(file, raw, key) for key in _T5_KEYS)
    size = positive(file, raw, "d_kv")
    buckets = positive(file, raw, "relative_attention_num_buckets", 32)
    farthest = positive(file, raw, "relative_attention_max_distance", 128)
    if not 1 <= buckets // 4 < farthest:
        raise ModelError(f"{file}: {buckets} relative_attention_num_buckets do not hold distances of up to {farthest}")
    return EncoderConfig(
        model_type=raw["model_type"],
        vocab_size=positive(file, raw, "vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        intermediate_size=positive(file, raw, "d_ff"),
        norm_eps=read_eps(file, raw, "layer_norm_epsilon"),
        position_rows=_T5_LONGEST,
        padding_id=read_padding(file, raw),
        activation=ACTIVATIONS[activation],
        gated=bool(gated),
        distances=(buckets, farthest),
        attentions=(Attention(heads, heads, size, 1.0),) * layers,
        biases=(),
    )


_PLAIN = ("qwen2", "mistral", "llama", "eurobert")
_TAKEN_OVER = ("nomic_bert", "eurobert", "gte", "new")
FAMILIES: dict[str, Callable[[Path, dict[str, Any]], EncoderConfig]] = {
    "bert": _bert,
    "distilbert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
    "ernie": _bert,
    "albert": _albert,
    "mpnet": _mpnet,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
    "nomic_bert": read_turned,
    "gte": read_turned,
    "new": read_new,
    "qwen3": _causal,
    "qwen2": _causal,
    "mistral": _causal,
    "llama": _causal,
    "eurobert": _causal,
    "gemma3_text": _gemma3,
    "t5": _t5,
    "mt5": _t5,
}
