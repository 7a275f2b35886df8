"""Holds the tokenizer that transformers made of a folder against the folder's own tokenizer.json.

Which class a tokenizer gets is guessed from names in its configuration, and a wrong guess loses spaces, or cuts texts
into tokens that the model has never seen. That shows nowhere but in answers that are a little worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .libraries import one_line

if TYPE_CHECKING:
    from pathlib import Path

# No line breaks: there are classes that write those otherwise, and rightly.
_SAMPLES = (
    "Two words, and a number: 1,234.5",
    "def f(x):  return {x: 'a  b'}    # naïve",
    "日本語の文章 and עברית 🙂",
)


def check_tokenizer(tokenizer: Any, folder: Path) -> str | None:
    """Raises `ModelError` where a text does not survive the way through both tokenizers, into tokens and back.

    Returns one sentence where both only cut texts into different tokens. Not all folders have a tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(str(path))
        differ = [text for text in _SAMPLES if not _alike(tokenizer, own, text)]
    except ModelError as error:
        raise ModelError(
            f"transformers does not read the tokenizer in {folder} as its tokenizer.json says ({error}): install the "
            "version of transformers that the model was made for, or correct tokenizer_class in tokenizer_config.json"
        ) from None
    except Exception as error:  # whatever a tokenizer raises of an ordinary text
        raise ModelError(f"the tokenizer in {folder} cannot read {_SAMPLES[0]!r}: {one_line(error)}") from error
    if differ:
        return f"transformers cuts {differ[0]!r} into other tokens than the model's tokenizer.json does"
    return None


def _alike(tokenizer: Any, own: Any, text: str) -> bool:
    """Whether a text becomes the same tokens. Raises `ModelError` where it does not become the same text again."""
    own_tokens = own.encode(text, add_special_tokens=False).ids
    tokens = list(tokenizer.encode(text, add_special_tokens=False))
    expected = own.decode(own_tokens)
    for again in (own.decode(tokens), tokenizer.decode(own_tokens, clean_up_tokenization_spaces=False)):
        if again.strip() != expected.strip():  # a space at the beginning is a matter of configuration
            raise ModelError(f"{expected!r} comes back as {again!r}")
    return bool(tokens[1:] == own_tokens[1:])
