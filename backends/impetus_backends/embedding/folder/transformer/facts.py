"""What the configurations of several families state under the same keys, read or refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import positive
from impetus_backends.embedding.folder.transformer.shapes import Attention
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.transformer.shapes import EncoderConfig

BERT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
NEAR, FAR = "sliding_attention", "full_attention"
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


def refuse_unless(file: Path, raw: dict[str, Any], **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if raw.get(key) not in values:
            raise ModelError(f"{file}: {key} {raw[key]!r} is not supported")


def refuse_twice(file: Path, raw: dict[str, Any], names: dict[str, str]) -> None:
    """Raises `ModelError` where a file states one thing under two names, and not alike: transformers reads both."""
    for other, own in names.items():
        if raw.get(other) not in (None, raw.get(own)):
            raise ModelError(f"{file}: {other} {raw[other]!r} contradicts {own} {raw.get(own)!r}")


def read_architecture(file: Path, raw: dict[str, Any]) -> str:
    """The class that a model was saved as, by its name in transformers."""
    named = raw.get("architectures") or ["nothing that it names"]
    if not isinstance(named, list):
        raise ModelError(f"{file}: architectures {named!r:.200} is no list of names")
    return str(named[0])


def read_sizes(file: Path, raw: dict[str, Any], keys: tuple[str, ...] = BERT_KEYS) -> dict[str, Any]:
    """What every family states, by the names of `EncoderConfig`."""
    hidden_size, layers, heads, intermediate_size = (positive(file, raw, key) for key in keys[:4])
    activation = raw.get(keys[4])
    if activation not in ACTIVATIONS:
        raise ModelError(f"{file}: {keys[4]} {activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return {
        "model_type": raw["model_type"],
        "vocab_size": positive(file, raw, "vocab_size"),
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "intermediate_size": intermediate_size,
        "position_rows": positive(file, raw, "max_position_embeddings"),
        "padding_id": read_padding(file, raw),
        "activation": ACTIVATIONS[activation],
    }


def read_padding(file: Path, raw: dict[str, Any]) -> int:
    """The token that rows are filled up with, which nobody looks at: any will do where none of the table is stated."""
    return stated_padding(file, raw) or 0


def stated_padding(file: Path, raw: dict[str, Any]) -> int | None:
    """None where a file states none, or one that is not in the table."""
    stated = raw.get("pad_token_id")
    return stated if isinstance(stated, int) and 0 <= stated < positive(file, raw, "vocab_size") else None


def read_eps(file: Path, raw: dict[str, Any], key: str) -> float:
    value = raw.get(key)
    if not isinstance(value, float):
        raise ModelError(f"{file} has no {key}")
    if not 0 <= value < math.inf:
        raise ModelError(f"{file}: {key} is {value}, and must be zero or more")
    return value


def even_heads(file: Path, sizes: dict[str, Any]) -> Attention:
    """Heads that divide the hidden units among them."""
    if sizes["hidden_size"] % sizes["heads"]:
        raise ModelError(f"{file}: {sizes['hidden_size']} hidden units do not divide into {sizes['heads']} heads")
    size = sizes["hidden_size"] // sizes["heads"]
    return Attention(sizes["heads"], sizes["heads"], size, size**-0.5)


def read_kinds(file: Path, raw: dict[str, Any], usual: list[str]) -> list[str]:
    """Which of a model's layers look everywhere, and which nearby."""
    kinds = raw.get("layer_types") or usual
    if len(kinds) != len(usual) or set(kinds) - {NEAR, FAR}:
        raise ModelError(f"{file}: layer_types {kinds} are not {len(usual)} of {NEAR} or {FAR}")
    return list(kinds)


def sides(encoder: EncoderConfig) -> dict[str, tuple[str, ...]]:
    """On which sides of a text tokens may be cut off or put, by what tokenizers call it: padding before a text would
    move every position that is looked up in a table."""
    return {"truncation_side": ("right",), "padding_side": ("right", "left") if encoder.turns else ("right",)}
