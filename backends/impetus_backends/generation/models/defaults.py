"""What a model's makers say of how it is to be run: `generation_config.json`, and templates in files of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .libraries import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What a `GenerationWork` has a field for, and which numbers make sense there.
_SAMPLING: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 0.0, 1.0),
    "top_k": (int, 0, 2**31 - 1),
    "min_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 1e-3, 100.0),
}


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """Holds where a request is silent."""

    sampling: Mapping[str, float] = field(default_factory=dict)
    """By name of a field of `GenerationWork`; only what the model's files state."""
    end_tokens: tuple[int, ...] = ()
    """The tokens that end a text, in this model's own words."""
    chat_template: str | None = None
    """Of `chat_template.json`, which tokenizers are not loaded with."""


def model_defaults(folder: Path) -> ModelDefaults:
    """Reads the files of a model's folder. Raises `ModelError` for one that is there and cannot be read."""
    stated = _read(folder / "generation_config.json")
    sampling = {
        name: kind(value)
        for name, (kind, least, most) in _SAMPLING.items()
        if isinstance(value := stated.get(name), int | float) and not isinstance(value, bool) and least <= value <= most
    }
    if stated.get("do_sample") is False:
        sampling["temperature"] = 0.0
    ends = [*_tokens(stated), *_tokens(_read(folder / "config.json"))]
    template = _read(folder / "chat_template.json").get("chat_template")
    return ModelDefaults(sampling, tuple(dict.fromkeys(ends)), template if isinstance(template, str) else None)


def use_defaults(tokenizer: Any, defaults: ModelDefaults, vocabulary_size: int) -> None:
    """Lets a tokenizer (mlx-lm's wrapper) end texts where the model says, and gives it a template if it has none."""
    ends = {*tokenizer.eos_token_ids, *defaults.end_tokens}
    tokenizer.eos_token_ids = {token for token in ends if 0 <= token < vocabulary_size}
    if defaults.chat_template is not None and not tokenizer.has_chat_template:
        tokenizer.chat_template = defaults.chat_template
        tokenizer.has_chat_template = True


def _tokens(stated: dict[str, Any]) -> list[int]:
    ends = stated.get("eos_token_id")
    return [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]


def _read(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    return content if isinstance(content, dict) else {}
