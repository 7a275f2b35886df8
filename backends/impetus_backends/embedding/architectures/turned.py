"""Families whose tokens tell their positions by the angles of queries and keys, and see what comes before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from impetus_backends.embedding.architectures.parts import WORDS, type_vectors
from impetus_backends.embedding.devices.operations import ExpertOps
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from impetus_backends.embedding.devices.operations import Inputs, Ops
    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

T = TypeVar("T")


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


def turned(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
    """NomicBERT and GTE: norms after, as in BERT, angles for positions and gated layers (arXiv:2402.01613,
    arXiv:2407.19669)."""
    hidden, eps = config.hidden_size, config.norm_eps
    for_attention, for_mlp = (part in config.biases for part in ("attention", "mlp"))
    names = _NOMIC if config.model_type == "nomic_bert" else _GTE
    width = 2 * config.intermediate_size // len(names.wide)
    x = ops.embed(WORDS, inputs.ids, config.vocab_size)
    if config.token_types:
        x = ops.add(x, type_vectors(ops, config, inputs))
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


def modernbert(ops: Ops[T], config: EncoderConfig, inputs: Inputs[T]) -> T:
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
