"""NomicBERT and GTE, whose files are written in their own words and in those of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import positive
from impetus_backends.embedding.folder.transformer.angles import read_angles, read_number
from impetus_backends.embedding.folder.transformer.facts import even_heads, read_eps, read_sizes, refuse_unless
from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig, Experts
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_NOMIC_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}


def read_turned(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """NomicBERT and GTE: BERT with angles for positions and gated layers."""
    nomic = raw["model_type"] == "nomic_bert"
    raw = _renamed(file, raw) if nomic and "n_embd" in raw else raw
    sizes = read_sizes(file, raw)
    attention = read_angles(file, raw, even_heads(file, sizes), "rope_theta", 1000.0 if nomic else 160_000.0)
    experts = _experts(file, raw) if nomic else None
    return EncoderConfig(
        **sizes,
        experts=experts,
        norm_eps=read_eps(file, raw, "layer_norm_eps"),
        token_types=raw.get("type_vocab_size", 2 if nomic else 1) != 0,
        attentions=(attention,) * sizes["layers"],
        biases=() if nomic and not experts else ("attention", "mlp"),
    )


def _renamed(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """What NomicBERT's own configuration says, in the words of transformers; raises for what those have none for."""
    with_experts = raw.get("moe_every_n_layers") not in (None, 0, -1)
    refuse_unless(
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


def read_new(file: Path, raw: dict[str, Any]) -> EncoderConfig:
    """GTE as it was published, by code of its own that transformers has taken over under another name."""
    refuse_unless(
        file,
        raw,
        layer_norm_type=(None, "layer_norm"),
        logn_attention_clip1=(None, False),
        logn_attention_scale=(None, False),
        pack_qkv=(None, True),
        position_embedding_type=(None, "rope"),
    )
    found = {**raw, "model_type": "gte", "rope_theta": read_number(file, raw, "rope_theta", 10_000.0)}
    scaling = raw.get("rope_scaling") or {}
    if scaling.get("type") == "ntk":  # a larger base, and all of them slower (https://kexue.fm/archives/9706)
        factor = read_number(file, scaling, "factor")
        slower = factor ** (2 * positive(file, raw, "num_attention_heads") / positive(file, raw, "hidden_size"))
        found["rope_theta"] *= factor
        found["rope_scaling"] = {**scaling, "type": "linear", "factor": slower}
    return read_turned(file, found)


def _experts(file: Path, raw: dict[str, Any]) -> Experts | None:
    if raw.get("moe_every_n_layers") in (None, 0, -1):
        return None
    count, chosen, every = (positive(file, raw, key) for key in ("num_experts", "moe_top_k", "moe_every_n_layers"))
    if chosen > count or every < 2:
        raise ModelError(f"{file}: {chosen} of {count} experts in every layer of {every} are not supported")
    return Experts(count, chosen, every)
