"""Small language models of many families, each in its family's true layout, with random weights.

A configuration has what the family's own has, in small: windows that slide, experts, states instead of keys and values.
The folder is what `mlx_lm.convert` would have written: `config.json`, the weights as mlx-lm's own class of the family
holds them, and the tokenizer that `make_tiny_model` trains.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scripts.models.make_tiny_model import NOTE, TEXT, llama_config, train_tokenizer, write_model_folder

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT_TOKENS = 2048
VOCABULARY = 448
_NOISE = 0.2
_WINDOW = 48

_WIDTH: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCABULARY}
_HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
_CONTEXT: dict[str, Any] = {"max_position_embeddings": CONTEXT_TOKENS}
_PLAIN: dict[str, Any] = _WIDTH | _HEADS | _CONTEXT | {"num_hidden_layers": 2}
_HEAD: dict[str, Any] = {"head_dim": 16}
_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
_UNBIASED: dict[str, Any] = {"attention_bias": False, "mlp_bias": False}
_SLIDING: dict[str, Any] = {"sliding_window": _WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1,
}  # fmt: skip
_YARN: dict[str, Any] = {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
_MULTI: dict[str, Any] = {"num_key_value_heads": 4}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
_QWEN3_5: dict[str, Any] = (
    _PLAIN | _HEAD | _LINEAR | _UNTIED | {"num_hidden_layers": 4, "full_attention_interval": 4}
)  # fmt: skip
_GRANITE: dict[str, Any] = {
    "logits_scaling": 1.0, "attention_multiplier": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
}  # fmt: skip
_LONGCAT: dict[str, Any] = (
    _WIDTH | _HEADS | _CONTEXT | _LATENT
    | {
        "attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 48, "moe_topk": 2,
        "expert_ffn_hidden_size": 32, "n_routed_experts": 4, "zero_expert_num": 2, "num_layers": 2,
        "routed_scaling_factor": 1.0, "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "attention_bias": False,
    }
)  # fmt: skip


class Family(NamedTuple):
    """One family: what it stands for, and its configuration but for the `model_type`, which is its name."""

    examples: str
    config: dict[str, Any]


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama 2, 3.x, Yi, SmolLM2, TinyLlama", _PLAIN | _UNBIASED),
    "mistral": Family("Mistral 7B, Nemo, Small", _PLAIN | _UNTIED | _SLIDING),
    "ministral3": Family(
        "Ministral 3", _PLAIN | _HEAD | _SLIDING
        | {"rope_parameters": {"rope_theta": 1e4, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}},
    ),
    "mixtral": Family("Mixtral 8x7B, 8x22B", _PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Family("Qwen 2, 2.5, QwQ, DeepSeek-R1-Distill-Qwen", _PLAIN | _TIED),
    "qwen2_moe": Family("Qwen1.5-MoE, Qwen2-57B-A14B", _PLAIN | _EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3": Family("Qwen3 0.6B to 32B", _PLAIN | _HEAD | _TIED),
    "qwen3_moe": Family(
        "Qwen3-30B-A3B, 235B-A22B, Coder",
        _PLAIN | _HEAD | _EXPERTS | _UNTIED | {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    ),
    "qwen3_next": Family(
        "Qwen3-Next-80B-A3B",
        _QWEN3_5 | _EXPERTS
        | {"decoder_sparse_step": 1, "shared_expert_intermediate_size": 32, "mlp_only_layers": [],
           "partial_rotary_factor": 0.5},
    ),
    "qwen3_5": Family("Qwen3.5, dense", {"text_config": _QWEN3_5 | {"model_type": "qwen3_5_text"}}),
    "qwen3_5_moe": Family(
        "Qwen3.5, experts",
        {"text_config": _QWEN3_5 | _EXPERTS
         | {"model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": 32}},
    ),
    "gemma": Family("Gemma 1", _PLAIN | _HEAD),
    "gemma2": Family("Gemma 2", _PLAIN | _HEAD),
    "gemma3_text": Family(
        "Gemma 3 270M, 1B, the text of 4B to 27B",
        _PLAIN | _HEAD | {"sliding_window": _WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    ),
    "gemma3n": Family(
        "Gemma 3n E2B, E4B",
        {"text_config": _PLAIN | _HEAD | {
            "model_type": "gemma3n_text", "num_hidden_layers": 4, "num_kv_shared_layers": 2,
            "intermediate_size": [48] * 4,
            "vocab_size_per_layer_input": VOCABULARY, "sliding_window": _WINDOW, "rope_local_base_freq": 1e4,
            "final_logit_softcapping": 30.0, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2,
            "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 8}},
    ),
    "gemma4_text": Family(
        "Gemma 4, dense",
        _PLAIN | _HEAD | {
            "num_hidden_layers": 4, "global_head_dim": 32, "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "sliding_window": _WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "phi3": Family("Phi-3, 3.5, Phi-4", _PLAIN),
    "phimoe": Family(
        "Phi-3.5-MoE", _PLAIN | {
            "num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": {
                "type": "longrope", "long_factor": [1.0] * 4, "short_factor": [1.0] * 4, "long_mscale": 1.0,
                "short_mscale": 1.0}},
    ),
    "phi": Family(
        "Phi-1.5, Phi-2", _PLAIN | {"num_key_value_heads": 4, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
    ),
    "gpt_oss": Family(
        "gpt-oss-20b, 120b",
        _PLAIN | _HEAD | _SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2,
         "rope_scaling": _YARN},
    ),
    "deepseek_v2": Family("DeepSeek-V2, V2-Lite", _PLAIN | _LATENT | _ROUTED | _MULTI | {"rope_scaling": _YARN}),
    "deepseek_v3": Family("DeepSeek-V3, R1, Kimi-K2, Moonlight", _PLAIN | _LATENT | _ROUTED | _MULTI),
    "deepseek_v32": Family(
        "DeepSeek-V3.2",
        _PLAIN | _LATENT | _ROUTED
        | _MULTI | {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 64},
    ),
    "glm4": Family("GLM-4-9B, 32B, Z1", _PLAIN | _HEAD | {"attention_bias": False, "partial_rotary_factor": 0.5}),
    "glm4_moe": Family(
        "GLM-4.5, 4.6, Air",
        _PLAIN | _HEAD | _ROUTED | _UNTIED
        | {"rope_scaling": None, "use_qk_norm": True, "attention_bias": False, "partial_rotary_factor": 0.5},
    ),
    "glm4_moe_lite": Family("GLM-4.7-Flash", _PLAIN | _LATENT | _ROUTED | _UNTIED | _MULTI),
    "granite": Family("Granite 3", _PLAIN | _UNBIASED | _GRANITE),
    "granitemoe": Family(
        "Granite 3 MoE", _PLAIN | _UNBIASED | _GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "granitemoehybrid": Family(
        "Granite 4",
        _PLAIN | _UNBIASED | _GRANITE
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "mamba_n_heads": 4,
           "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_proj_bias": False,
           "mamba_conv_bias": True, "layer_types": ["mamba", "attention"], "position_embedding_type": "nope"},
    ),
    "cohere": Family("Command-R, Aya", _PLAIN | {"layer_norm_eps": 1e-5}),
    "cohere2": Family(
        "Command-R7B, Command-A",
        _PLAIN | {"head_dim": 8} | {"layer_norm_eps": 1e-5, "sliding_window": _WINDOW, "sliding_window_pattern": 2},
    ),
    "olmo2": Family("OLMo 2", _PLAIN),
    "olmo3": Family("OLMo 3", _PLAIN | _SLIDING),
    "olmoe": Family("OLMoE", _PLAIN | {"num_experts": 4, "num_experts_per_tok": 2}),
    "olmo_hybrid": Family(
        "OLMo hybrid",
        _PLAIN | _LINEAR | _UNTIED | {"num_hidden_layers": 4, "attention_bias": False, "linear_allow_neg_eigval": True},
    ),
    "exaone4": Family(
        "EXAONE 4", _PLAIN | _HEAD | _TIED
        | {"rope_scaling": {"type": "default"}, "sliding_window": _WINDOW, "sliding_window_pattern": "LG",
           "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ernie4_5": Family("ERNIE 4.5 0.3B", _PLAIN | _HEAD | _TIED | {"use_bias": False}),
    "ernie4_5_moe": Family(
        "ERNIE 4.5 21B-A3B, 300B-A47B",
        _PLAIN | _TIED | {"use_bias": False, "moe_num_experts": 4, "moe_intermediate_size": 32, "moe_k": 2,
                          "moe_num_shared_experts": 1},
    ),
    "hunyuan_v1_dense": Family("Hunyuan 0.5B to 7B", _PLAIN | _HEAD | {
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}),
    "lfm2": Family(
        "LFM2 350M to 2.6B",
        _PLAIN | {"norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 32, "block_ff_dim": 48,
                  "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False,
                  "full_attn_idxs": [1]},
    ),
    "lfm2_moe": Family(
        "LFM2-8B-A1B",
        _PLAIN | _EXPERTS | {"norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "norm_topk_prob": True,
                             "use_expert_bias": True, "num_dense_layers": 1, "full_attn_idxs": [1]},
    ),
    "falcon_h1": Family(
        "Falcon-H1",
        _PLAIN | _HEAD | {"mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_n_heads": 4},
    ),
    "nemotron": Family("Nemotron 4, Minitron", _PLAIN | {"hidden_act": "relu2", "norm_eps": 1e-5}),
    "nemotron_h": Family(
        "Nemotron-H, Nemotron Nano 2 and 3",
        _PLAIN | _HEAD | _UNBIASED
        | {"mamba_num_heads": 2, "mamba_head_dim": 16, "ssm_state_size": 16, "conv_kernel": 4, "n_groups": 1,
           "mamba_proj_bias": False, "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
           "num_hidden_layers": 4, "hybrid_override_pattern": list("MM*-")},
    ),
    "mamba": Family(
        "Mamba, Falcon-Mamba",
        _WIDTH | {"state_size": 8, "num_hidden_layers": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
                  "time_step_rank": 2, "intermediate_size": 64},
    ),
    "mamba2": Family(
        "Mamba 2, Mamba-Codestral",
        _WIDTH | _TIED | {"num_heads": 4, "head_dim": 16, "intermediate_size": 64, "state_size": 16,
                          "num_hidden_layers": 2, "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "n_groups": 1,
                          "use_bias": False, "use_conv_bias": True, "time_step_limit": [0.0, 100.0],
                          "time_step_rank": 2},
    ),
    "jamba": Family(
        "Jamba",
        _PLAIN | {"num_hidden_layers": 4, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1,
                  "expert_layer_period": 2, "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2, "num_experts": 1,
                  "num_experts_per_tok": 1},
    ),
    "kimi_linear": Family(
        "Kimi-Linear-48B-A3B",
        _PLAIN | _HEAD | _LATENT
        | {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 32,
           "num_shared_experts": 1, "first_k_dense_replace": 1, "model_max_length": CONTEXT_TOKENS,
           "mla_use_nope": True, "num_key_value_heads": 4, "linear_attn_config": {
               "full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 16, "num_heads": 4,
               "short_conv_kernel_size": 4}},
    ),
    "smollm3": Family("SmolLM3", _PLAIN | {"num_hidden_layers": 4}),
    "starcoder2": Family("StarCoder 2", _PLAIN),
    "stablelm": Family(
        "StableLM 2", _PLAIN | {"use_qkv_bias": True, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}
    ),
    "gpt_neox": Family(
        "Pythia, GPT-NeoX",
        _WIDTH | _CONTEXT | {"num_attention_heads": 4, "num_hidden_layers": 2, "layer_norm_eps": 1e-5,
                             "rotary_emb_base": 10000, "rotary_pct": 0.5},
    ),
    "gpt2": Family(
        "GPT-2",
        {"n_ctx": CONTEXT_TOKENS, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": CONTEXT_TOKENS,
         "layer_norm_epsilon": 1e-5, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT_TOKENS},
    ),
    "internlm2": Family("InternLM 2, 2.5", _PLAIN),
    "internlm3": Family("InternLM 3", _PLAIN),
    "minicpm3": Family(
        "MiniCPM3-4B",
        _PLAIN | _LATENT | {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 2, "num_key_value_heads": 4,
                            "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 4, "short_factor": [1.0] * 4,
                                             "original_max_position_embeddings": 512}},
    ),
    "minimax": Family(
        "MiniMax-M2",
        _PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "rotary_dim": 8,
                  "head_dim": 16},
    ),
    "mimo": Family("MiMo-7B", _PLAIN),
    "seed_oss": Family("Seed-OSS-36B", _PLAIN | _HEAD),
    "apertus": Family("Apertus", _PLAIN | _UNBIASED | _UNTIED | {"post_norm": False, "qk_norm": True}),
    "helium": Family("Helium 1", _PLAIN | _HEAD | _UNBIASED | _UNTIED),
    "bitnet": Family("BitNet b1.58", _PLAIN | _UNBIASED),
    "dots1": Family("dots.llm1", _PLAIN | _ROUTED | {"scoring_func": "noaux_tc"}),
    "recurrent_gemma": Family(
        "RecurrentGemma",
        _PLAIN | {"num_hidden_layers": 3, "attention_bias": False, "conv1d_width": 4, "logits_soft_cap": 30.0,
                  "num_key_value_heads": 1, "attention_window_size": _WINDOW,
                  "block_types": ["recurrent", "recurrent", "attention"]},
    ),
    "rwkv7": Family(
        "RWKV-7",
        _WIDTH | {"norm_eps": 1e-5, "head_dim": 32, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
                  "a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
    ),
    "baichuan_m1": Family(
        "Baichuan-M1", _PLAIN | {"sliding_window": _WINDOW, "sliding_window_layers": [1], "conv_window": 2}
    ),
    "llama4": Family(
        "Llama 4",
        {"text_config": _PLAIN | _HEAD | {
            "model_type": "llama4_text", "attention_bias": False, "attention_chunk_size": 64, "num_hidden_layers": 4,
            "interleave_moe_layer_step": 2, "intermediate_size_mlp": 48, "num_experts_per_tok": 1,
            "num_local_experts": 2, "rope_scaling": None, "use_qk_norm": True}},
    ),
    "afm7": Family(
        "AFM (Apple)",
        {"vocab_size": VOCABULARY, "hidden_dim": 32, "num_layers": 2, "num_kv_reuse_layers": 1, "num_heads": 4,
         "num_kv_heads": 2, "max_position_embeddings": CONTEXT_TOKENS},
    ),
    "longcat_flash": Family("LongCat-Flash", _LONGCAT),
    "longcat_flash_ngram": Family("LongCat-Flash-Lite", _LONGCAT | {"ngram_vocab_size_ratio": 4}),
}  # fmt: skip


def make_model(name: str, vocabulary: int = VOCABULARY, seed: int = 0) -> Any:
    """mlx-lm's own model of the family, in float32, whose answers to different texts differ."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import _get_classes

    config = _config(name, vocabulary)
    kind, arguments = _get_classes(config)
    mx.random.seed(seed)
    model: Any = kind(arguments.from_dict(json.loads(json.dumps(config))))
    # Some come as zeros or ones, and without what they stand for nothing of a text's beginning reaches its end.
    model.update(tree_map(_noisy, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def _noisy(weights: Any) -> Any:
    import mlx.core as mx

    floating = mx.issubdtype(weights.dtype, mx.floating)
    return weights + mx.random.normal(weights.shape) * _NOISE if floating else weights


def write_family(folder: Path, name: str, seed: int = 0) -> Path:
    """Writes a model of the family into `folder`, made if need be, and returns it."""
    from mlx.utils import tree_flatten

    tokenizer = train_tokenizer(TEXT.splitlines(), VOCABULARY)
    parameters: Any = tree_flatten(make_model(name, tokenizer.get_vocab_size(), seed).parameters())
    weights = {path: np.array(each) for path, each in parameters}
    ends = {key: llama_config(tokenizer)[key] for key in ("eos_token_id",)}
    stated = {"torch_dtype": "float32", "impetus_note": NOTE, "max_position_embeddings": CONTEXT_TOKENS}
    return write_model_folder(folder, tokenizer, weights, stated | ends | _config(name, tokenizer.get_vocab_size()))


def _config(name: str, vocabulary: int) -> dict[str, Any]:
    config = {"model_type": name, **FAMILIES[name].config}
    if text := config.get("text_config"):
        return config | {"vocab_size": vocabulary, "text_config": text | {"vocab_size": vocabulary}}
    return config | {"vocab_size": vocabulary}
