"""Very long words, shortened where that changes no token.

A WordPiece tokenizer takes a word of more characters than its limit for an unknown one, whatever they are (BERT,
`tokenization.py`, `max_input_chars_per_word`); and of white space, and of characters that it drops, one is as good as
many. So a word of ten megabytes, which costs it half a minute, need not be read to its end.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SPACES = re.compile(r"[ \t\n\r]{3,}")
_DROPPED_CODES = (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0xFFFD)
_DROPPED = re.compile(f"[{re.escape(''.join(map(chr, _DROPPED_CODES)))}]{{3,}}")
_LAST = 0x1FFFF
"""Beyond lie ideographs."""
_IDEOGRAPHS = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""What BERT puts spaces around."""


def shortener(tokenizer: Any) -> Callable[[str], str] | None:
    """What makes texts shorter without a change of their tokens; None for tokenizers of which that is not known."""
    parts = json.loads(tokenizer.to_str())
    kinds = [(parts.get(part) or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"] or not parts["normalizer"].get("clean_text"):
        return None
    limit = int(parts["model"]["max_input_chars_per_word"])
    of_a_word, beside = _classes()
    if any(re.fullmatch(f"{of_a_word}+", added["content"]) for added in parts.get("added_tokens") or ()):
        return None  # one could stand in the middle of a word
    too_long = re.compile(f"(?<!{of_a_word})((?:{of_a_word}{beside}*+){{{limit + 1}}})(?:{of_a_word}|{beside})++")

    def shorten(text: str) -> str:
        for runs in (_SPACES, _DROPPED):
            text = runs.sub(lambda run: run[0][:2], text)
        return too_long.sub(r"\1", text)

    return shorten


@cache
def _classes() -> tuple[str, str]:
    """For regular expressions: the characters that each are one or more of a word, whatever stands beside them; and
    those that may be nothing, but end no word."""
    of_a_word = (code for code in range(_LAST + 1) if _is_of_a_word(chr(code), code))
    beside = (code for code in range(_LAST + 1) if unicodedata.category(chr(code)) in ("Mn", "Me", "Mc", "Cf"))
    return _class(of_a_word), _class(chain(beside, _DROPPED_CODES))


def _class(codes: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges) + "]"


def _is_of_a_word(character: str, code: int) -> bool:
    if any(first <= code <= last for first, last in _IDEOGRAPHS):
        return False
    if code < 0x80:
        return character.isalnum()
    if unicodedata.category(character)[0] not in "LNS":
        return False
    # What its accents are taken off may be punctuation, or an ideograph.
    return all(
        part == character or _is_of_a_word(part, ord(part)) or unicodedata.category(part) == "Mn"
        for part in unicodedata.normalize("NFD", character)
    )
