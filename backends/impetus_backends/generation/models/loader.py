"""Loads a language model from a folder in the Hugging Face layout, with mlx-lm.

It knows folders and mlx-lm's loading. It does not download, and it never runs code that came with a model.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ..quantization.quantize import QuantizationError, described, evaluate, quantization_of, quantize
from ..texts.templates import template_for_tools
from .context import ASSUMED_CONTEXT_TOKENS, context_tokens
from .defaults import ModelDefaults, model_defaults, use_defaults
from .libraries import import_libraries, keep_mlx_lm_from_wiring, one_line
from .limits import MOST_CACHE_BYTES, MemoryLimits
from .tokenizer_check import check_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from ..quantization.quantize import Recipe

_LENGTH_UNKNOWN = (
    f"{ASSUMED_CONTEXT_TOKENS:,} tokens are taken for the most it reads: neither its files nor the libraries say"
)
CACHE_LIMIT_BYTES = MOST_CACHE_BYTES
"""The bound of MLX's pool of freed memory where the machine's own is not known."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and its tokenizer, ready to run on `device` by the thread that loaded them."""

    model: Any
    """An `mlx.nn.Module`: (rows, tokens) to logits."""
    tokenizer: Any
    """mlx-lm's `TokenizerWrapper`."""
    context_tokens: int
    """The longest prompt and answer together."""
    vocabulary_size: int
    """How many logits the model gives for a token; some give more than the tokenizer knows tokens."""
    fingerprint: str
    """16 hex digits of a sha256 over weights, configuration and the backend's name."""
    precision: str
    """Such as `bfloat16`, or `4-bit affine (groups of 64)`."""
    device: str
    """`cpu`, or `gpu` and its architecture."""
    note: str | None
    """What the model's own configuration asks to be said with every result (`impetus_note`)."""
    reasons: tuple[str, ...] = ()
    """What was done to the weights when they were loaded, or was asked for and not done, and why."""
    context_known: bool = True
    """Whether `context_tokens` is what the model reads; else it is `ASSUMED_CONTEXT_TOKENS`."""
    defaults: ModelDefaults = field(default_factory=ModelDefaults)
    """What its files say of how it is to be run. Its ends of text are those of `tokenizer` already."""


def load(folder: Path, *, quantization: Recipe | None = None, limits: MemoryLimits | None = None) -> LoadedModel:
    """Loads the model in `folder` into memory, quantised on the way if asked, and sets MLX's memory limits.

    Quantising makes no difference to the files; the weights are packed one by one, so the whole model is never in
    memory as it comes. Without `limits` MLX's pool of freed memory is bounded all the same.

    Raises `BackendUnavailableError` where MLX or mlx-lm is not installed, `ModelError` for a folder that is not a model
    mlx-lm can run, and `QuantizationError` where the model cannot be quantised so. Takes seconds: it reads the weights
    once to load and once to hash them.
    """
    config = read_config(folder)
    if quantization is not None and (already := quantization_of(config, folder)) is not None:
        raise QuantizationError(f"the model in {folder} is quantised already: {already}")
    mx, mlx_lm = import_libraries()
    limits = limits or MemoryLimits()
    limits.apply(mx)
    if not limits.wired_bytes:
        keep_mlx_lm_from_wiring()
    try:
        parts: Any = mlx_lm.load(
            str(folder),
            tokenizer_config={"trust_remote_code": False},
            return_config=True,
            trust_remote_code=False,
            lazy=quantization is not None,
        )
        model, tokenizer, full_config = parts
        tokenizer = _with_calls_of_named_templates(tokenizer, folder)
        if quantization is not None:
            full_config = quantize(model, full_config, quantization).config
            evaluate(model)
    except QuantizationError:
        raise
    except Exception as error:  # mlx-lm raises whatever its parsers raise; all of it means this folder
        raise ModelError(f"mlx-lm cannot load the model in {folder}: {one_line(error)}") from error

    vocabulary_size = _vocabulary_size(model, folder)
    otherwise_cut = check_tokenizer(tokenizer, folder)
    length = context_tokens(folder, config, model, tokenizer)
    defaults = model_defaults(folder)
    use_defaults(tokenizer, defaults, vocabulary_size)
    # Prompts that are too long are refused here with both figures: transformers need not warn of them on stderr.
    tokenizer.model_max_length = sys.maxsize
    note = config.get("impetus_note")
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        context_tokens=length or ASSUMED_CONTEXT_TOKENS,
        context_known=length is not None,
        defaults=defaults,
        vocabulary_size=vocabulary_size,
        fingerprint=_fingerprint(folder, quantization),
        precision=_precision(model, full_config) + (", quantised at load" if quantization else ""),
        device=_device(mx),
        note=note if isinstance(note, str) else None,
        reasons=tuple(each for each in (otherwise_cut, None if length else _LENGTH_UNKNOWN) if each),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The model's own configuration. Raises `ModelError` where there is none that can be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"there is no model in {folder}: config.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return config


def _vocabulary_size(model: Any, folder: Path) -> int:
    import mlx.core as mx

    try:
        return int(model(mx.zeros((1, 1), dtype=mx.int32)).shape[-1])  # a graph: nothing is computed
    except Exception as error:  # such as a kernel that only another device has
        raise ModelError(f"mlx-lm cannot run the model in {folder} on this device: {one_line(error)}") from error


def _fingerprint(folder: Path, quantization: Recipe | None) -> str:
    digest = hashlib.sha256(b"mlx" + (f" {quantization.name}".encode() if quantization else b""))
    for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _precision(model: Any, config: dict[str, Any]) -> str:
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and (words := described(quantization)) is not None:
        return words
    from mlx.utils import tree_flatten

    weights: Any = tree_flatten(model.parameters())
    sizes: Counter[str] = Counter()
    for _, weight in weights:
        sizes[str(weight.dtype).removeprefix("mlx.core.")] += weight.size
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def _with_calls_of_named_templates(tokenizer: Any, folder: Path) -> Any:
    """Where a model has several chat templates, mlx-lm does not look into that for tools for how it writes calls."""
    from mlx_lm import tokenizer_utils

    if not isinstance(tokenizer.chat_template, dict) or tokenizer.has_tool_calling:
        return tokenizer
    alone = SimpleNamespace(chat_template=template_for_tools(tokenizer), get_vocab=tokenizer.get_vocab)
    if (kind := tokenizer_utils._infer_tool_parser(alone)) is None:
        return tokenizer
    stated = {"trust_remote_code": False, "tool_parser_type": kind}
    return tokenizer_utils.load(folder, stated, eos_token_ids=tokenizer.eos_token_ids)


def _device(mx: Any) -> str:
    if mx.default_device().type == mx.DeviceType.gpu:
        return f"gpu {mx.device_info()['architecture']}" if mx.metal.is_available() else "gpu"
    return "cpu"
