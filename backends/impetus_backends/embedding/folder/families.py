"""The shape of one transformer, as its `config.json` states it: one function a family. Nothing is guessed.

Defaults are those of transformers' configuration classes, for files that leave a key out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import flag, positive
from impetus_backends.embedding.folder.packed import read_packings
from impetus_backends.embedding.folder.shapes import JINA, Attention, EncoderConfig, Experts
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The same five facts under the two vocabularies of Hugging Face configurations.
_BERT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
_DISTILBERT_KEYS = ("dim", "n_layers", "n_heads", "hidden_dim", "activation")
_MODERN_KEYS = (*_BERT_KEYS[:4], "hidden_activation")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What files call an activation, and what `Ops.activate` does: names differ more than functions do."""
_JINA_CODE = "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"
_NEAR, _FAR = "sliding_attention", "full_attention"
_T5_LONGEST = 8192
"""Its distances end nowhere: so many tokens are enough."""
_NOMIC_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
_POSITIONS_COUNTED = ("roberta", "xlm-roberta", "camembert")


def read_shape(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """Raises `ModelError` for a family that is not known, and for whatever this one would run wrongly."""
    model_type = raw.get("model_type")
    is_jinas = model_type == "bert" and raw.get("position_embedding_type") == "alibi"
    read = _jina if is_jinas else FAMILIES.get(str(model_type))
    if read is None:
        raise ModelError(f"{file}: model_type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    _refuse(
        file,
        raw,
        is_decoder=(None, False),
        add_cross_attention=(None, False),
        # NomicBERT's own code is what transformers has taken over, and its files still name it; Jina's is looked at.
        auto_map=(None, {}, *([raw.get("auto_map")] if model_type == "nomic_bert" or is_jinas else [])),
    )
    read_packings(file, raw)
    if read not in (_causal, _gemma3):
        _refuse(file, raw, is_causal=(None, False))
    return read(file, raw)


def _refuse(file: Path, raw: dict[str, Any], **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if raw.get(key) not in values:
            raise ModelError(f"{file}: {key} {raw[key]!r} is not supported")


def _sizes(file: Path, raw: dict[str, Any], keys: tuple[str, ...] = _BERT_KEYS) -> dict[str, Any]:
    """What every family states, by the names of `EncoderConfig`."""
    hidden_size, layers, heads, intermediate_size = (positive(file, raw, key) for key in keys[:4])
    activation = raw.get(keys[4])
    if activation not in ACTIVATIONS:
        raise ModelError(f"{file}: {keys[4]} {activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    padding_id = raw.get("pad_token_id")
    return {
        "model_type": raw["model_type"],
        "vocab_size": positive(file, raw, "vocab_size"),
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "intermediate_size": intermediate_size,
        "position_rows": positive(file, raw, "max_position_embeddings"),
        "padding_id": padding_id if isinstance(padding_id, int) else 0,
        "activation": ACTIVATIONS[activation],
    }


def _eps(file: Path, raw: dict[str, Any], key: str) -> float:
    value = raw.get(key)
    if not isinstance(value, float):
        raise ModelError(f"{file} has no {key}")
    return value


def _even(file: Path, sizes: dict[str, Any]) -> Attention:
    """Heads that divide the hidden units among them."""
    if sizes["hidden_size"] % sizes["heads"]:
        raise ModelError(f"{file}: {sizes['hidden_size']} hidden units do not divide into {sizes['heads']} heads")
    size = sizes["hidden_size"] // sizes["heads"]
    return Attention(sizes["heads"], sizes["heads"], size, size**-0.5)


def _bert(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """BERT, and what differs from it in names and positions alone."""
    _refuse(file, raw, position_embedding_type=(None, "absolute"))
    distilled = raw["model_type"] == "distilbert"
    sizes = _sizes(file, raw, _DISTILBERT_KEYS if distilled else _BERT_KEYS)
    uncounted_id = None
    if raw["model_type"] in _POSITIONS_COUNTED:
        uncounted_id = raw.get("pad_token_id")
        if not isinstance(uncounted_id, int):
            raise ModelError(f"{file} has no pad_token_id, on which {raw['model_type']} positions rest")
    return EncoderConfig(
        **sizes,
        # transformers' modeling_distilbert.py writes 1e-12 into the code.
        norm_eps=1e-12 if distilled else _eps(file, raw, "layer_norm_eps"),
        uncounted_id=uncounted_id,
        embedding_size=positive(file, raw, "embedding_size", 128) if raw["model_type"] == "electra" else 0,
        attentions=(_even(file, sizes),) * sizes["layers"],
    )


def _jina(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """Jina's BERT: distances that lower scores instead of positions, and gated layers. It says that it is a `bert`, and
    by whose code it is run, of which there are several."""
    code = (raw.get("auto_map") or {}).get("AutoModel")
    if code != _JINA_CODE:
        raise ModelError(f"{file}: position_embedding_type 'alibi' of {code} is not supported; that of {_JINA_CODE} is")
    _refuse(file, raw, feed_forward_type=("geglu", "reglu"))
    sizes = _sizes(file, raw)
    return EncoderConfig(
        **{**sizes, "model_type": JINA, "activation": "gelu" if raw["feed_forward_type"] == "geglu" else "relu"},
        norm_eps=_eps(file, raw, "layer_norm_eps"),
        # Every distance has a share of its own.
        distances=(sizes["position_rows"] + 1, sizes["position_rows"]),
        attentions=(_even(file, sizes),) * sizes["layers"],
    )


def _mpnet(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    # transformers' modeling_mpnet.py writes both into the code, whatever the file says.
    _refuse(file, raw, relative_attention_num_buckets=(None, 32), pad_token_id=(None, 1))
    sizes: dict[str, Any] = {**_sizes(file, raw), "padding_id": 1}
    return EncoderConfig(
        **sizes,
        norm_eps=_eps(file, raw, "layer_norm_eps"),
        uncounted_id=1,
        attentions=(_even(file, sizes),) * sizes["layers"],
    )


def _deberta(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """DeBERTa as its third version is made: relative positions alone, whose weights are those of tokens too."""
    sizes = _sizes(file, raw)
    parts = raw.get("pos_att_type")
    parts = parts.lower().split("|") if isinstance(parts, str) else parts
    if not isinstance(parts, list) or sorted(map(str, parts)) != ["c2p", "p2c"]:
        raise ModelError(f"{file}: pos_att_type {raw.get('pos_att_type')!r} is not supported; supported is p2c|c2p")
    _refuse(
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
    even = _even(file, sizes)
    return EncoderConfig(
        **sizes,
        norm_eps=_eps(file, raw, "layer_norm_eps"),
        token_types=False,
        distances=(2 * positive(file, raw, "position_buckets"), farthest),
        # Scores are sums of three products.
        attentions=(replace(even, scale=(3 * even.head_size) ** -0.5),) * sizes["layers"],
    )


def _turned(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """NomicBERT and GTE: BERT with angles for positions and gated layers."""
    nomic = raw["model_type"] == "nomic_bert"
    raw = _renamed(file, raw) if nomic and "n_embd" in raw else raw
    sizes = _sizes(file, raw)
    theta = _theta(file, raw, _FAR, "rope_theta", 1000.0 if nomic else 160_000.0)
    experts = _experts(file, raw) if nomic else None
    return EncoderConfig(
        **sizes,
        experts=experts,
        norm_eps=_eps(file, raw, "layer_norm_eps"),
        token_types=raw.get("type_vocab_size", 2 if nomic else 1) != 0,
        attentions=(replace(_even(file, sizes), theta=theta),) * sizes["layers"],
        biases=() if nomic and not experts else ("attention", "mlp"),
    )


def _renamed(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """What NomicBERT's own configuration says, in the words of transformers; raises for what those have none for."""
    with_experts = raw.get("moe_every_n_layers") not in (None, 0, -1)
    _refuse(
        file,
        raw,
        activation_function=("gelu" if with_experts else "swiglu",),
        causal=(None, False),
        expert_choice_router=(None, False),
        mlp_fc1_bias=(with_experts,),
        mlp_fc2_bias=(with_experts,),
        moe_normalize_expert_weights=(None, False),
        num_shared_experts=(None, 0),
        parallel_block=(None, False),
        prenorm=(False,),
        qkv_proj_bias=(with_experts,),
        rotary_emb_fraction=(1.0,),
        rotary_emb_interleaved=(None, False),
        rotary_emb_scale_base=(None,),
        rotary_scaling_factor=(None,),
        use_rms_norm=(None, False),
    )
    return {
        **raw,
        **{ours: raw.get(theirs) for theirs, ours in _NOMIC_KEYS.items()},
        "hidden_act": "gelu" if with_experts else "silu",
    }


def _experts(file: Path, raw: dict[str, Any]) -> Experts | None:
    if raw.get("moe_every_n_layers") in (None, 0, -1):
        return None
    count, chosen, every = (positive(file, raw, key) for key in ("num_experts", "moe_top_k", "moe_every_n_layers"))
    if chosen > count or every < 2:
        raise ModelError(f"{file}: {chosen} of {count} experts in every layer of {every} are not supported")
    return Experts(count, chosen, every)


def _modernbert(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    sizes = _sizes(file, raw, _MODERN_KEYS)
    every = positive(file, raw, "global_attn_every_n_layers", 3)
    base = _even(file, sizes)
    near = replace(
        base,
        window=positive(file, raw, "local_attention", 128) // 2,
        theta=_theta(file, raw, _NEAR, "local_rope_theta", 10_000.0),
    )
    far = replace(base, theta=_theta(file, raw, _FAR, "global_rope_theta", 160_000.0))
    kinds = _kinds(file, raw, [_NEAR if index % every else _FAR for index in range(sizes["layers"])])
    return EncoderConfig(
        **sizes,
        norm_eps=_eps(file, raw, "norm_eps"),
        attentions=tuple(far if kind == _FAR else near for kind in kinds),
        biases=tuple(part for part in ("attention", "mlp", "norm") if flag(file, raw, f"{part}_bias", False)),
    )


def _causal(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """Language models whose tokens see what came before them: Qwen 2 and 3, Mistral, Llama."""
    _refuse(file, raw, use_sliding_window=(None, False), is_causal=(None, True), mlp_bias=(None, False))
    _refuse(file, raw, use_bidirectional_attention=(None, False), partial_rotary_factor=(None, 1.0))
    sizes = _sizes(file, raw)
    # Mistral alone has all its layers look nearby, where its file says how far.
    window = raw.get("sliding_window") if raw["model_type"] == "mistral" else None
    usual = _FAR if window is None else _NEAR
    if set(_kinds(file, raw, [usual] * sizes["layers"])) != {usual}:
        raise ModelError(f"{file}: layer_types {raw['layer_types']} are not supported")
    base = replace(
        _grouped(file, raw, sizes),
        causal=True,
        theta=_theta(file, raw, _FAR, "rope_theta"),
        window=0 if window is None else positive(file, raw, "sliding_window") - 1,
    )
    found = _decoder(file, raw, sizes, [base] * sizes["layers"])
    return replace(found, biases=("qkv",)) if raw["model_type"] == "qwen2" else found


def _gemma3(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    _refuse(file, raw, attn_logit_softcapping=(None,), is_causal=(None,))
    sizes = _sizes(file, raw, _MODERN_KEYS)
    every = positive(file, raw, "sliding_window_pattern", positive(file, raw, "_sliding_window_pattern", 6))
    causal = not flag(file, raw, "use_bidirectional_attention", False)
    window = positive(file, raw, "sliding_window", 4096)
    scale = positive(file, raw, "query_pre_attn_scalar", 256) ** -0.5
    base = replace(_grouped(file, raw, sizes), causal=causal, scale=scale)
    far = replace(base, theta=_theta(file, raw, _FAR, "rope_theta", 1_000_000.0))
    near = replace(
        base,
        window=window - 1 if causal else window // 2,
        theta=_theta(file, raw, _NEAR, "rope_local_base_freq", 10_000.0),
    )
    kinds = _kinds(file, raw, [_NEAR if (index + 1) % every else _FAR for index in range(sizes["layers"])])
    return _decoder(file, raw, sizes, [far if kind == _FAR else near for kind in kinds])


def _decoder(file: Path, raw: dict[str, Any], sizes: dict[str, Any], attentions: list[Attention]) -> EncoderConfig:
    return EncoderConfig(
        **sizes,
        norm_eps=_eps(file, raw, "rms_norm_eps"),
        attentions=tuple(attentions),
        biases=("attention",) if flag(file, raw, "attention_bias", False) else (),
    )


def _grouped(file: Path, raw: dict[str, Any], sizes: dict[str, Any]) -> Attention:
    """Heads of a size of their own, several of which share keys and values."""
    heads = sizes["heads"]
    shared = positive(file, raw, "num_key_value_heads", heads)
    # Files of Llama and its like may state none.
    even = None if raw.get("head_dim") or sizes["model_type"] not in _PLAIN else _even(file, sizes)
    size = even.head_size if even else positive(file, raw, "head_dim")
    if heads % shared:
        raise ModelError(f"{file}: {heads} heads do not share {shared} of keys and values")
    return Attention(heads, shared, size, size**-0.5)


def _kinds(file: Path, raw: dict[str, Any], usual: list[str]) -> list[str]:
    """Which of a model's layers look everywhere, and which nearby."""
    kinds = raw.get("layer_types") or usual
    if len(kinds) != len(usual) or set(kinds) - {_NEAR, _FAR}:
        raise ModelError(f"{file}: layer_types {kinds} are not {len(usual)} of {_NEAR} or {_FAR}")
    return list(kinds)


def _theta(file: Path, raw: dict[str, Any], kind: str, key: str, default: float | None = None) -> float:
    """The base of the angles of one kind of layer, in the form of transformers 5 or in the older one."""
    stated = raw.get("rope_parameters") or {}
    own = stated.get(kind, {} if _NEAR in stated or _FAR in stated else stated) or {}
    for scaling in (own, raw.get("rope_scaling") or {}):
        unknown = {name: value for name, value in scaling.items() if name != "rope_theta"}
        if unknown.pop("rope_type", unknown.pop("type", "default")) != "default" or unknown:
            raise ModelError(f"{file}: angles scaled by {scaling} are not supported")
    theta = own.get("rope_theta", raw.get(key, default))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise ModelError(f"{file}: {key} is {theta!r}, not a positive number")
    return float(theta)


def _t5(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """T5's encoder, whose attention is not scaled and which knows distances and no positions."""
    form = raw.get("feed_forward_proj", "relu")
    gated, _, activation = str(form).rpartition("-")
    # transformers reads gated-gelu as the approximation, which it was trained with.
    activation = "gelu_new" if form == "gated-gelu" else activation
    if gated not in ("", "gated") or activation not in ACTIVATIONS:
        raise ModelError(f"{file}: feed_forward_proj {form!r} is not supported")
    # transformers follows these where a file has them, and writes them to agree.
    _refuse(file, raw, is_gated_act=(None, bool(gated)), dense_act_fn=(None, activation))
    hidden, layers, heads = (positive(file, raw, key) for key in ("d_model", "num_layers", "num_heads"))
    size = positive(file, raw, "d_kv")
    return EncoderConfig(
        model_type=raw["model_type"],
        vocab_size=positive(file, raw, "vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        intermediate_size=positive(file, raw, "d_ff"),
        norm_eps=_eps(file, raw, "layer_norm_epsilon"),
        position_rows=_T5_LONGEST,
        padding_id=raw.get("pad_token_id") or 0,
        activation=ACTIVATIONS[activation],
        gated=bool(gated),
        distances=(
            positive(file, raw, "relative_attention_num_buckets", 32),
            positive(file, raw, "relative_attention_max_distance", 128),
        ),
        attentions=(Attention(heads, heads, size, 1.0),) * layers,
        biases=(),
    )


_PLAIN = ("qwen2", "mistral", "llama")
RERANKERS_ALONE = ("deberta-v2",)
"""Families of which no model for embeddings was tried."""
FAMILIES: dict[str, Callable[[Path, dict[str, Any]], EncoderConfig]] = {
    "bert": _bert,
    "distilbert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "electra": _bert,
    "mpnet": _mpnet,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
    "nomic_bert": _turned,
    "gte": _turned,
    "qwen3": _causal,
    "qwen2": _causal,
    "mistral": _causal,
    "llama": _causal,
    "gemma3_text": _gemma3,
    "t5": _t5,
    "mt5": _t5,
}
