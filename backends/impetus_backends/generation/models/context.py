"""How many tokens a model reads, prompt and answer together, as far as its files or the libraries know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ASSUMED_CONTEXT_TOKENS = 4096
"""What is assumed of a model of which nobody says it."""

# The names under which configurations state the longest sequence, the common one first.
_KEYS = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx",
    "model_max_length",
)  # fmt: skip
_SECTIONS = ("text_config", "language_config", "llm_config")
_MOST_TOKENS = 100_000_000
"""Tokenizers that do not know say 1e30."""


def context_tokens(folder: Path, config: dict[str, Any], model: Any, tokenizer: Any) -> int | None:
    """None where it is not known. `config`: the folder's config.json; `model`: mlx-lm's.

    What the configuration states goes first. Configurations leave out what their class takes for granted (those of
    Gemma 3 do), so then come transformers' classes and mlx-lm's arguments; a tokenizer that knows less limits these.
    """
    if stated := _stated(config):
        return stated
    by_class = _by_transformers(folder) or _by_arguments(model)
    by_tokenizer = _length(getattr(tokenizer, "model_max_length", None))
    known = [length for length in (by_class, by_tokenizer) if length is not None]
    return min(known, default=None)


def _stated(config: dict[str, Any]) -> int | None:
    sections = [config, *(config[name] for name in _SECTIONS if isinstance(config.get(name), dict))]
    lengths = (_length(section.get(key)) for section in sections for key in _KEYS)
    return next((length for length in lengths if length is not None), None)


def _by_transformers(folder: Path) -> int | None:
    from transformers import AutoConfig

    try:
        configuration = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).get_text_config()
    except Exception:  # noqa: BLE001 - an architecture that transformers does not know, or reads otherwise
        return None
    return next((length for key in _KEYS if (length := _length(getattr(configuration, key, None)))), None)


def _by_arguments(model: Any) -> int | None:
    for part in (model, getattr(model, "language_model", None)):
        arguments = getattr(part, "args", None)
        for key in _KEYS:
            if (length := _length(getattr(arguments, key, None))) is not None:
                return length
    return None


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_TOKENS else None
