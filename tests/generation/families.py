"""Small models of several architectures, in their true layouts, with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1}
_NOISE = 0.2
_SIZES = {"hidden_size": 32, "intermediate_size": 48}


def nemotron_h(vocabulary: int) -> Any:
    from mlx_lm.models import nemotron_h as family

    heads = {"mamba_num_heads": 2, "mamba_head_dim": 16, "ssm_state_size": 16, "conv_kernel": 4, "n_groups": 1}
    plain = {"attention_bias": False, "mamba_proj_bias": False, "mlp_bias": False, "use_bias": False}
    args: Any = family.ModelArgs(
        model_type="nemotron_h", vocab_size=vocabulary, max_position_embeddings=4096, layer_norm_epsilon=1e-5,
        use_conv_bias=True, hybrid_override_pattern=list("MM*-"), num_hidden_layers=4, head_dim=16,
        **_SIZES, **_ATTENTION, **heads, **plain,
    )  # fmt: skip
    return family.Model(args)


def mamba(vocabulary: int) -> Any:
    from mlx_lm.models import mamba as family

    args = family.ModelArgs(
        model_type="mamba", vocab_size=vocabulary, state_size=8, num_hidden_layers=2, conv_kernel=4, use_bias=False,
        use_conv_bias=True, time_step_rank=2, hidden_size=32, intermediate_size=64,
    )  # fmt: skip
    return family.Model(args)


def jamba(vocabulary: int) -> Any:
    from mlx_lm.models import jamba as family

    args: Any = family.ModelArgs(
        model_type="jamba", vocab_size=vocabulary, num_hidden_layers=4, attn_layer_offset=1, attn_layer_period=2,
        expert_layer_offset=1, expert_layer_period=2, mamba_d_conv=4, mamba_d_state=8, mamba_expand=2, num_experts=1,
        num_experts_per_tok=1, rms_norm_eps=1e-5, max_position_embeddings=4096, **_SIZES, **_ATTENTION,
    )  # fmt: skip
    return family.Model(args)


def rwkv7(vocabulary: int) -> Any:
    from mlx_lm.models import rwkv7 as family

    ranks = {f"{name}_low_rank_dim": 8 for name in ("a", "v", "gate", "decay")}
    args: Any = family.ModelArgs(
        model_type="rwkv7", vocab_size=vocabulary, norm_eps=1e-5, head_dim=32, num_hidden_layers=2,
        hidden_size=64, intermediate_size=96, **ranks,
    )  # fmt: skip
    return family.Model(args)


def recurrent_gemma(vocabulary: int) -> Any:
    from mlx_lm.models import recurrent_gemma as family

    args: Any = family.ModelArgs(
        model_type="recurrent_gemma", vocab_size=vocabulary, attention_bias=False, conv1d_width=4,
        logits_soft_cap=30.0, num_hidden_layers=3, rms_norm_eps=1e-6, rope_theta=10_000.0, attention_window_size=64,
        block_types=["recurrent", "recurrent", "attention"], **_SIZES, **_ATTENTION,
    )  # fmt: skip
    return family.Model(args)


def baichuan_m1(vocabulary: int) -> Any:
    from mlx_lm.models import baichuan_m1 as family

    args: Any = family.ModelArgs(
        vocab_size=vocabulary, num_hidden_layers=2, rope_theta=10_000.0, sliding_window=64,
        sliding_window_layers=[1], conv_window=2, rms_norm_eps=1e-6, **_SIZES, **_ATTENTION,
    )  # fmt: skip
    return family.Model(args)


def olmo_hybrid(vocabulary: int) -> Any:
    from mlx_lm.models import olmo_hybrid as family

    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 4}
    args: Any = family.ModelArgs(
        model_type="olmo_hybrid", vocab_size=vocabulary, num_hidden_layers=4, rms_norm_eps=1e-6,
        max_position_embeddings=4096, linear_key_head_dim=16, linear_value_head_dim=16, linear_allow_neg_eigval=True,
        tie_word_embeddings=False, attention_bias=False, **_SIZES, **_ATTENTION, **linear,
    )  # fmt: skip
    return family.Model(args)


def qwen3(vocabulary: int) -> Any:
    from mlx_lm.models import qwen3 as family

    args: Any = family.ModelArgs(
        model_type="qwen3", vocab_size=vocabulary, num_hidden_layers=2, rms_norm_eps=1e-6, rope_theta=10_000.0,
        max_position_embeddings=4096, head_dim=16, tie_word_embeddings=False, **_SIZES, **_ATTENTION,
    )  # fmt: skip
    return family.Model(args)


FAMILIES: dict[str, Callable[[int], Any]] = {
    each.__name__: each for each in (nemotron_h, mamba, jamba, rwkv7, recurrent_gemma, baichuan_m1, olmo_hybrid, qwen3)
}


def make(name: str, vocabulary: int, seed: int = 0) -> Any:
    """A model whose answers to different texts differ, in float32."""
    import mlx.core as mx
    from mlx.utils import tree_map

    mx.random.seed(seed)
    model = FAMILIES[name](vocabulary)
    # Some come as zeros or ones, and without what they stand for nothing of a text's beginning reaches its end.
    model.update(tree_map(lambda each: each + mx.random.normal(each.shape) * _NOISE, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model
