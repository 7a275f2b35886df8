"""Reading a model's tokenizer: as transformers reads it, or not at all.

What a `tokenizer_config.json` means depends on the class that it names and on the version that reads it, so the library
that everybody's vectors were made with is asked, and what it makes is held against the files and the model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.folder.files import read_json
from impetus_backends.embedding.folder.transformer.facts import sides
from impetus_backends.embedding.folder.transformer.shapes import STATIC
from impetus_backends.errors import ModelError
from impetus_backends.tokenizing import import_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")
# Tables are filled up to a multiple of some power of two, and no further.
_LEAST_SHARE = 0.9
_SAMPLES = ("Two words, and a number: 1,234.5", "naïve Übergröße (x, y) {z}!", "日本語の文章 and עברית 🙂")
"""Any class that fits a tokenizer.json cuts them so. Of line breaks and of two spaces there are several opinions."""
_CONFIGURED = {
    "BertNormalizer": ("lowercase", "strip_accents", "handle_chinese_chars"),
    "ByteLevel": ("add_prefix_space",),
    "Metaspace": ("prepend_scheme", "add_prefix_space"),
}
"""What a tokenizer_config.json may say otherwise, by the part of a tokenizer that does it."""
_PROBE = "The quick brown fox, naïve and 3.14 % lazier: über-dogs! 敏捷的棕色狐狸 Быстрая лиса"


def read_tokenizer(config: EmbeddingConfig) -> Any:
    """The tokenizer of a model, that cuts and pads nothing; raises `ModelError` where it cannot be read, or is not one
    that this model can have been trained with."""
    if config.encoder.model_type == STATIC:
        return _checked(config, _alone(config.transformer))
    return read_whole_tokenizer(config).backend_tokenizer


def read_whole_tokenizer(config: EmbeddingConfig) -> Any:
    """The same, as transformers' own object, which also knows what else its model is given."""
    folder = config.transformer
    if not any(any(folder.glob(name)) for name in _FILES):
        raise ModelError(f"{folder} holds no tokenizer: none of {', '.join(_FILES)}")
    whole = _as_transformers_does(folder)
    if not hasattr(whole, "backend_tokenizer"):
        raise ModelError(
            f"the tokenizer in {folder} is a {type(whole).__name__}, which transformers writes out in Python: only "
            "those of the library tokenizers are read"
        )
    for side, allowed in sides(config.encoder).items():
        # Where tokenizer_config.json states none, transformers takes that of tokenizer.json.
        if getattr(whole, side) not in allowed:
            raise ModelError(f"the tokenizer in {folder}: {side} {getattr(whole, side)!r} is not supported")
    _checked(config, whole.backend_tokenizer)
    return whole


def _alone(folder: Path) -> Any:
    """The tokenizer that `tokenizer.json` is, without the special tokens that it would put around texts."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    tokenizer.post_processor = None
    return tokenizer


def _checked(config: EmbeddingConfig, tokenizer: Any) -> Any:
    folder = config.transformer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if chance := getattr(tokenizer.model, "dropout", None):
        raise ModelError(
            f"the tokenizer in {folder} leaves out merges by chance (dropout {chance:.2g}), so that no text has "
            "the same tokens twice: take dropout out of its tokenizer.json"
        )
    _compare(folder, tokenizer)
    if config.text.do_lower_case:
        _lower(tokenizer)
    rows = config.encoder.vocab_size
    # Tokens added later may lie beyond the table, as Gemma's for images: a text that has one is refused by itself.
    words, largest = (_end(tokenizer.get_vocab(with_added_tokens=added)) for added in (False, True))
    if words > rows or largest < _LEAST_SHARE * rows:
        raise ModelError(
            f"the tokenizer in {folder} makes ids below {largest} and the model's table has {rows} rows: "
            "they are not of one model, or a file is missing"
        )
    try:
        probed = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} reads no text: {error}") from error
    if len(set(probed)) < 2:
        raise ModelError(f"the tokenizer in {folder} takes every word for the same one: its vocabulary is missing")
    return tokenizer


def _as_transformers_does(folder: Path) -> Any:
    file = folder / "tokenizer_config.json"
    if file.is_file() and read_json(file, dict).get("auto_map"):
        raise ModelError(f"{file}: auto_map names code of the model's own, which is never run")
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        said = " ".join(str(error).split())
        raise ModelError(f"the tokenizer in {folder} cannot be read: {said:.300}") from error


def _compare(folder: Path, tokenizer: Any) -> None:
    """Raises `ModelError` where the class that one file names cannot be what the other file holds."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    stored = read_json(file, dict)
    made = json.loads(tokenizer.to_str())
    kinds = [each["model"].get("type") for each in (stored, made)]
    if kinds[0] is not None and kinds[0] != kinds[1]:
        raise ModelError(
            f"{folder / 'tokenizer_config.json'} makes a {kinds[1]} tokenizer of tokenizer.json, which is {kinds[0]}: "
            "one of the two files is of another model"
        )
    if any(stored.get(part) != made.get(part) for part in ("normalizer", "pre_tokenizer", "model")):
        _compare_cuts(folder, tokenizer, stored, made)


def _compare_cuts(folder: Path, tokenizer: Any, stored: dict[str, Any], made: dict[str, Any]) -> None:
    """Raises `ModelError` where the tokenizer cuts a text otherwise than the one that is stored."""
    try:
        own = _own(tokenizer, stored, made)
        cuts = {text: [each.encode(text, add_special_tokens=False).tokens for each in (own, tokenizer)]
                for text in _SAMPLES}  # fmt: skip
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} reads no text: {error}") from error
    # A space at the beginning is a matter of configuration.
    differ = [text for text, (expected, found) in cuts.items() if found[1:] != expected[1:]]
    if differ:
        expected, found = (" ".join(tokens)[:60] for tokens in cuts[differ[0]])
        raise ModelError(
            f"transformers does not read the tokenizer in {folder} as its tokenizer.json says ({differ[0]!r} becomes "
            f"{found!r} and not {expected!r}): correct tokenizer_class in tokenizer_config.json, or install the "
            "version of transformers that the model was made for"
        )


def _own(tokenizer: Any, stored: dict[str, Any], made: dict[str, Any]) -> Any:
    """What a tokenizer.json says, with what a tokenizer_config.json may say otherwise as transformers has made it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    for part in ("normalizer", "pre_tokenizer"):
        as_made = {each["type"]: each for each in _steps(made.get(part))}
        for step in _steps(stored.get(part)):
            like = as_made.get(step["type"], {})
            step |= {key: like[key] for key in _CONFIGURED.get(step["type"], ()) if key in like}
    whole = stored | {"truncation": None, "padding": None}
    if whole["model"] != made["model"]:
        return Tokenizer.from_str(json.dumps(whole))
    # A large vocabulary takes a second to be read again, and is shared instead.
    empty = json.loads(Tokenizer(WordLevel({}, unk_token="")).to_str())["model"]
    steps = Tokenizer.from_str(json.dumps(whole | {"model": empty, "added_tokens": [], "post_processor": None}))
    own = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer"):
        if (step := getattr(steps, part)) is not None:
            setattr(own, part, step)
    return own


def _steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Of a part of a tokenizer, whether it is one or a sequence of others."""
    if part is None:
        return
    within = part.get("normalizers") or part.get("pretokenizers")
    for step in within or ():
        yield from _steps(step)
    if within is None:
        yield part


def _end(vocabulary: dict[str, int]) -> int:
    return max(vocabulary.values(), default=-1) + 1


def _lower(tokenizer: Any) -> None:
    """Adds lower-casing before all else unless the tokenizer has it, by the rule of sentence-transformers."""
    from tokenizers.normalizers import Lowercase, Sequence

    present: Any = tokenizer.normalizer
    parts: list[Any] = [present] if present is not None else []
    if isinstance(present, Sequence):
        parts = list(iter(present))
    if not any(isinstance(part, Lowercase) for part in parts):
        tokenizer.normalizer = Sequence([Lowercase(), *parts])
