"""T5, and language models: norms before what they are of, and of root mean squares alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from impetus_backends.embedding.architectures.parts import distance_bias

if TYPE_CHECKING:
    from impetus_backends.embedding.devices.operations import Inputs, Ops
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

T = TypeVar("T")


def t5(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """T5's encoder: norms before, and distances in the scores instead of positions (arXiv:1910.10683)."""
    x = ops.embed("encoder.embed_tokens.weight", inputs.ids, config.vocab_size)
    bias = distance_bias(ops, config, inputs, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
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


def decoder(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
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
