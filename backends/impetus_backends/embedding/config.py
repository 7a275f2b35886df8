"""What an embedding model's files say about how to run it. Nothing is guessed: what is missing or unknown is an error.

Layout: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (modules.json and one folder per module)
around a Hugging Face `config.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from impetus_backends.errors import ModelError

_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_xlm-roberta_config.json",
)
_OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The same five facts under the two vocabularies of Hugging Face configurations.
_BERT_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
_DISTILBERT_KEYS = ("dim", "n_layers", "n_heads", "hidden_dim", "activation")
_MODEL_TYPES = ("bert", "distilbert", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The shape of one transformer encoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    layer_norm_eps: float
    position_rows: int
    """Rows of the table of positions."""
    padding_id: int

    @property
    def counts_padding(self) -> bool:
        """Whether positions start after the padding id, as in RoBERTa, and not at zero."""
        return self.model_type in ("roberta", "xlm-roberta")

    @property
    def longest(self) -> int:
        """The most tokens the table of positions has room for."""
        return self.position_rows - self.padding_id - 1 if self.counts_padding else self.position_rows


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """How token vectors become one vector: `mode` is `mean` or `cls`."""

    mode: str
    normalise: bool


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What happens to a text before the tokenizer, and how many tokens of it count."""

    max_tokens: int
    do_lower_case: bool
    prompts: tuple[tuple[str, str], ...]
    default_prompt_name: str | None


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """Everything the files of one embedding model say. `transformer` is the folder of its weights and tokenizer."""

    transformer: Path
    encoder: EncoderConfig
    pooling: PoolingConfig
    text: TextConfig


def read_config(folder: Path) -> EmbeddingConfig:
    """Reads a model's files; raises `ModelError` where they are missing, contradictory, or ask for the unsupported."""
    modules = _modules(folder)
    transformer = modules["Transformer"]
    encoder = _encoder(transformer)
    pooling = PoolingConfig(_pooling_mode(modules["Pooling"], encoder.hidden_size), "Normalize" in modules)
    return EmbeddingConfig(transformer, encoder, pooling, _text(folder, transformer, encoder))


def _modules(folder: Path) -> dict[str, Path]:
    file = folder / "modules.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} has no modules.json, so nothing says how its token vectors are pooled; "
            "save the model with sentence-transformers first"
        )
    found: dict[str, Path] = {}
    for module in read_json(file, list):
        name, path = str(module.get("type")).rpartition(".")[2], str(module.get("path", ""))
        if not str(module.get("type")).startswith("sentence_transformers."):
            raise ModelError(f"{file} names {module.get('type')}, which is code of the model's own and is never run")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ModelError(f"{file} points outside its folder: {path}")
        found[name] = folder / path
    if list(found) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(f"{file} is {', '.join(found)}; supported is Transformer, Pooling and maybe Normalize")
    normalise = found.get("Normalize", folder) / "config.json"
    if "Normalize" in found and normalise.is_file():
        names = set(read_json(normalise, dict).values())
        if names - {"sentence_embedding", None}:
            raise ModelError(f"{normalise} normalises {names}; supported is sentence_embedding alone")
    return found


def _encoder(folder: Path) -> EncoderConfig:
    file = folder / "config.json"
    raw = read_json(file, dict)
    model_type = raw.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ModelError(f"{file}: model_type {model_type!r} is not supported; supported are {', '.join(_MODEL_TYPES)}")
    for key, allowed in (
        ("position_embedding_type", (None, "absolute")),
        ("is_decoder", (None, False)),
        ("add_cross_attention", (None, False)),
        ("auto_map", (None, {})),
        ("quantization_config", (None, {})),
    ):
        if raw.get(key) not in allowed:
            raise ModelError(f"{file}: {key} {raw[key]!r} is not supported")
    keys = _DISTILBERT_KEYS if model_type == "distilbert" else _BERT_KEYS
    hidden_size, layers, heads, intermediate_size = (_positive(file, raw, key) for key in keys[:4])
    if raw.get(keys[4]) != "gelu":
        raise ModelError(f"{file}: {keys[4]} {raw.get(keys[4])!r} is not supported; supported is gelu")
    if hidden_size % heads:
        raise ModelError(f"{file}: {hidden_size} hidden units do not divide into {heads} heads")
    padding_id = raw.get("pad_token_id")
    if not isinstance(padding_id, int):
        if model_type in ("roberta", "xlm-roberta"):
            raise ModelError(f"{file} has no pad_token_id, on which {model_type} positions rest")
        padding_id = 0
    # transformers' modeling_distilbert.py writes 1e-12 into the code.
    eps = 1e-12 if model_type == "distilbert" else raw.get("layer_norm_eps")
    if not isinstance(eps, float):
        raise ModelError(f"{file} has no layer_norm_eps")
    return EncoderConfig(
        model_type=model_type,
        vocab_size=_positive(file, raw, "vocab_size"),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        intermediate_size=intermediate_size,
        layer_norm_eps=eps,
        position_rows=_positive(file, raw, "max_position_embeddings"),
        padding_id=padding_id,
    )


def _pooling_mode(folder: Path, hidden_size: int) -> str:
    file = folder / "config.json"
    raw = read_json(file, dict)
    width = raw.get("embedding_dimension", raw.get("word_embedding_dimension"))
    if width != hidden_size:
        raise ModelError(f"{file} pools vectors of {width}, the encoder makes vectors of {hidden_size}")
    if raw.get("include_prompt", True) is not True:
        raise ModelError(f"{file}: include_prompt false is not supported")
    mode = raw.get("pooling_mode", [name for key, name in _OLD_POOLING.items() if raw.get(key)])
    modes = [mode] if isinstance(mode, str) else list(mode)
    if modes not in (["mean"], ["cls"]):
        raise ModelError(f"{file} pools by {' and '.join(map(str, modes)) or 'nothing'}; supported are mean and cls")
    return str(modes[0])


def _text(folder: Path, transformer: Path, encoder: EncoderConfig) -> TextConfig:
    file = next((transformer / name for name in _SENTENCE_CONFIGS if (transformer / name).is_file()), None)
    sentence: dict[str, Any] = read_json(file, dict) if file else {}
    if sentence.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise ModelError(f"{file}: transformer_task {sentence['transformer_task']!r} is not supported")
    for key in ("query_length", "document_length", "query_expansion"):
        if sentence.get(key) is not None:
            raise ModelError(f"{file}: {key} is not supported")
    tokenizer = _optional(transformer / "tokenizer_config.json")
    for side in ("truncation_side", "padding_side"):
        if tokenizer.get(side, "right") != "right":
            raise ModelError(f"{transformer / 'tokenizer_config.json'}: {side} {tokenizer[side]!r} is not supported")
    # sentence-transformers' own order; the table of positions bounds it because past its end there is nothing to read.
    stated = sentence.get("max_seq_length") or tokenizer.get("model_max_length") or encoder.longest
    prompts = _optional(folder / "config_sentence_transformers.json")
    default = prompts.get("default_prompt_name")
    named = {str(key): str(value or "") for key, value in (prompts.get("prompts") or {}).items()}
    if default is not None and default not in named:
        raise ModelError(f"{folder / 'config_sentence_transformers.json'}: there is no prompt named {default!r}")
    return TextConfig(
        max_tokens=int(min(stated, encoder.longest)),
        do_lower_case=bool(sentence.get("do_lower_case", False)),
        prompts=tuple(named.items()),
        default_prompt_name=default,
    )


def _positive(file: Path, raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{file}: {key} is {value!r}, not a positive number")
    return value


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file, dict) if file.is_file() else {}


def read_json(file: Path, kind: type[Any]) -> Any:
    """The content of a JSON file whose outermost value is of that kind; raises `ModelError` naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise ModelError(f"{file} does not hold a JSON {'object' if kind is dict else 'array'}")
    return content
