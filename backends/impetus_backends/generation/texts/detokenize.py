"""The text of an answer while its tokens come: always what the tokenizer's own `decode` makes of all of them.

Decoding everything again for each token would cost the square of an answer's length, and decoding line by line or token
by token gives other texts: many decoders treat the first token otherwise than the rest (SentencePiece's drop a space),
make one character of several tokens, or turn a whole run of byte tokens into U+FFFD because of its last one. So a few
of the last tokens are decoded each time, and that in place of the end of the text; they are chosen such that whatever a
decoder does to a beginning has happened within them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

REPLACEMENT = "\ufffd"
_TAIL_TOKENS = 8
_MOST_TAIL_TOKENS = 24
_UNSETTLED_TOKENS = 8
"""How many of the last tokens are taken to be unsettled where the decoder is of no kind known here."""
_PRINTED = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTED)
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {chr(256 + at): byte for at, byte in enumerate(_OTHERS)}
"""How byte-level tokenizers spell bytes, as GPT-2's did first."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Those of the `tokenizers` library that add to the end of a text and look no further back than one character.
_ADDING = {"ByteLevel", "Metaspace", "WordPiece", "BPEDecoder", "ByteFallback", "Fuse", "Strip"}


class Decoding:
    """How one model's tokenizer turns tokens into text, found out once. `tokenizer`: mlx-lm's `TokenizerWrapper`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        steps = list(decoder_steps(tokenizer))
        self.known = all(_adds(step) for step in steps)
        """Whether its texts only grow, but for what `settled` below says."""
        self.revises_words = _revises_words(tokenizer)
        """Whether it takes the space out of "do n't" once it sees the rest of the word."""
        self._spells_bytes = any(step["type"] == "ByteLevel" for step in steps)
        self._joins_bytes = any(step["type"] == "ByteFallback" for step in steps)
        self._byte_tokens: dict[int, bool] = {}

    def decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens)
        return text

    def piece(self, token: int, *, first: bool) -> str:
        """What a token alone adds to a text: at its beginning, or further on. Half a character is U+FFFD."""
        alone = self.decode([token])
        if first:
            return alone
        twice = self.decode([token, token])
        return twice[len(alone) :] if twice.startswith(alone) else alone

    def raw(self, token: int) -> bytes | None:
        """The bytes that a token stands for, where tokens stand for bytes."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if self.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        if not self._spells_bytes or not isinstance(piece, str):
            return None
        return bytes(_BYTE_OF[each] for each in piece) if _BYTE_OF.keys() >= set(piece) else None

    def is_byte(self, token: int) -> bool:
        """Whether it is one byte of a run that is decoded as a whole."""
        if not self._joins_bytes:
            return False
        if token not in self._byte_tokens:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            self._byte_tokens[token] = isinstance(piece, str) and _BYTE_TOKEN.fullmatch(piece) is not None
        return self._byte_tokens[token]


class Detokenizer:
    """One answer. Looking at its text, or not, makes no difference to it."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._tokens: list[int] = []
        self._head = ""
        """The text up to what the tail is decoded to. Nothing that comes later changes it."""
        self._tail_at = 0
        self._decoded: tuple[int, str] = (0, "")
        """A number of tokens, and their text."""
        self._settled: tuple[int, int] = (0, 0)
        """A number of tokens, and how much of their text is settled."""

    def add(self, token: int) -> None:
        self._tokens.append(token)

    @property
    def text(self) -> str:
        """All tokens' text, the U+FFFD of a character that is not whole yet included."""
        count = len(self._tokens)
        if self._decoded[0] != count:
            text = self._head + self._decoding.decode(self._tokens[self._tail_at :])
            self._decoded = count, text
            if count - self._tail_at > _MOST_TAIL_TOKENS:
                self._shorten_tail(text)
        return self._decoded[1]

    @property
    def settled(self) -> int:
        """How many characters of `text`, from the first, no later token changes."""
        if self._settled[0] != len(self._tokens):
            self._settled = len(self._tokens), self._settled_characters(self.text)
        return self._settled[1]

    def whole(self) -> str:
        """The tokenizer's own text of all tokens."""
        return self._decoding.decode(self._tokens)

    def _settled_characters(self, text: str) -> int:
        end = len(self._tokens)
        while end > self._tail_at and self._decoding.is_byte(self._tokens[end - 1]):
            end -= 1
        if not self._decoding.known:
            end = max(end - _UNSETTLED_TOKENS, self._tail_at)
        if end < len(self._tokens):
            text = common_beginning(text, self._head + self._decoding.decode(self._tokens[self._tail_at : end]))
        text = text.rstrip(REPLACEMENT)
        if not self._decoding.revises_words:
            return len(text)
        before_last_word = text[: max(text.rfind(" "), 0)].rstrip(" ")
        return max(len(before_last_word), text.rfind("\n") + 1)

    def _shorten_tail(self, text: str) -> None:
        """Lets the tail begin later, where that decodes to the same end of the text, now and whatever comes."""
        settled = self._settled_characters(text)
        latest = len(self._tokens) - _TAIL_TOKENS
        for start in range(latest, max(self._tail_at, latest - _TAIL_TOKENS), -1):
            if self._decoding.is_byte(self._tokens[start]):
                continue
            tail = self._decoding.decode(self._tokens[start:])
            if self._is_anchored(tail) and text.endswith(tail) and len(text) - len(tail) <= settled:
                self._head, self._tail_at = text[: len(text) - len(tail)], start
                return

    def _is_anchored(self, tail: str) -> bool:
        """Whether what the decoder does to a beginning has been done, and is out of reach of what comes."""
        if self._decoding.revises_words:
            return any(character.isalnum() for character in tail[:-_TAIL_TOKENS])
        return bool(tail.strip(REPLACEMENT))  # a half character might be completed otherwise


def decoder_steps(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """What a tokenizer does to its tokens to make text of them, in order, as tokenizer.json has it; one step of no
    known type for a tokenizer that does not tell."""
    if not _decodes_by_backend(tokenizer):
        yield {"type": "unknown"}
    elif (decoder := tokenizer.backend_tokenizer.decoder) is not None:
        yield from _steps(json.loads(decoder.__getstate__()))


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _decodes_by_backend(tokenizer: Any) -> bool:
    """Whether `decode` is that of the `tokenizers` library, and nothing is done to its text but cleaning up."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not issubclass(kind, PreTrainedTokenizerFast):
        kind = type(getattr(tokenizer, "_tokenizer", None))  # mlx-lm's wrapper
    return (
        issubclass(kind, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerFast.decode
        and kind._decode is PreTrainedTokenizerFast._decode
    )


def _adds(step: dict[str, Any]) -> bool:
    """A replacement of one character cannot be half done."""
    if step["type"] == "Replace":
        return len(step.get("pattern", {}).get("String", "")) == 1
    return step["type"] in _ADDING


def _revises_words(tokenizer: Any) -> bool:
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    model = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
    also_bpe = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return model != "BPE" or bool(getattr(tokenizer, also_bpe, False))


def common_beginning(one: str, other: str) -> str:
    if one.startswith(other):
        return other
    at = 0
    for at, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return one[:at]
    return one[: min(len(one), len(other))]


def token_bytes(tokenizer: Any) -> list[bytes] | None:
    """What each token of a SentencePiece-like vocabulary stands for inside a text; none for other kinds of tokenizers.

    At the beginning of a text a space may be missing. Special tokens stand for nothing: b"".
    """
    steps = list(decoder_steps(tokenizer))
    kinds = {step["type"] for step in steps}
    if not kinds & {"Replace", "Metaspace"} or kinds - {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        return None
    replaced = {"▁": " "} if "Metaspace" in kinds else {}
    for step in steps:
        if step["type"] == "Metaspace":
            replaced = {step["replacement"]: " "}
        elif step["type"] == "Replace":
            replaced[step["pattern"].get("String", "")] = step["content"]
        elif step["type"] == "Strip" and step["stop"]:
            return None
    if any(len(character) != 1 for character in replaced):
        return None
    table = str.maketrans(replaced)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    found: list[bytes] = []
    for token, piece in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if piece is None or token in special:
            found.append(b"")
        elif "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(piece):
            found.append(bytes([int(piece[3:5], 16)]))
        else:
            found.append(piece.translate(table).encode())
    return found
