"""Texts to token rows, exactly as sentence-transformers makes them, with the effort bounded by what the model reads.

Runs in the worker: knows the tokenizer and nothing of devices or weights.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from impetus_backends.embedding.encoder import PROMPT
from impetus_backends.embedding.folder.config import TextConfig, read_config
from impetus_backends.embedding.folder.transformer.shapes import STATIC
from impetus_backends.embedding.texts.long_words import shortener
from impetus_backends.embedding.texts.tokenizer import read_tokenizer, read_whole_tokenizer
from impetus_backends.errors import ModelError, RequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from impetus_backends.protocol import Spans

InputType = Literal["query", "document"] | None
# The names under which model files keep the prompts of each input type, in sentence-transformers' order.
_PROMPT_NAMES = {
    "query": ("query", "search_query", "retrieval.query", "s2p_query", "web_search_query"),
    "document": ("document", "passage", "corpus", "search_document", "retrieval.passage"),
}
_CHARS_PER_TOKEN = 16
# How far from a cut a token must end to be sure of: a special token such as [MASK] may lie across the cut.
_MARGIN_CHARS = 128


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One token row, int32 with special tokens."""

    ids: np.ndarray
    lost: int = 0
    """How many tokens of the text found no room: about, where it is long, as it is not read to its end."""
    chunks: Spans = ()
    """Which of the row's tokens are of each chunk that was asked for."""

    @property
    def truncated(self) -> bool:
        return self.lost > 0


class TextEncoder:
    """The tokenizer of one model. Safe to use from one thread at a time."""

    def __init__(
        self,
        tokenizer: Any,
        config: TextConfig,
        *,
        include_prompt: bool = True,
        needs_ends: bool = True,
        special_ids: Collection[int] = (),
    ) -> None:
        """`needs_ends`: whether the model must be shown where texts begin or end. `special_ids`: of the tokens that the
        tokenizer's files name as special, where prompts are left out."""
        self._tokenizer = tokenizer
        self._prompts = {"query": "", "document": ""} | dict(config.prompts)  # these sentence-transformers adds
        default = config.default_prompt_name
        self._default_prompt = "" if default is None else self._prompts.get(default, "")
        self._include_prompt = include_prompt
        self._special_ids = special_ids
        self.max_tokens = config.max_tokens
        """The longest row that `encode` makes, special tokens included."""
        self._shorten = shortener(tokenizer)
        self._head, self._tail = _special_tokens(tokenizer)
        self._room = self.max_tokens - len(self._head) - len(self._tail)
        if self._room < 1:
            raise ModelError(f"a row of {self.max_tokens} tokens has no room for text")
        if needs_ends and not len(self._head) + len(self._tail):
            raise ModelError(
                "the tokenizer marks neither where a text begins nor where it ends, as this model needs it: "
                "its files put no special tokens there (post_processor in tokenizer.json)"
            )

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Reads the tokenizer of the model in a folder; raises `ModelError` where it cannot."""
        config = read_config(folder)
        if config.encoder.model_type == STATIC:
            return cls(read_tokenizer(config), config.text, needs_ends=False)
        whole = read_whole_tokenizer(config)
        if "token_type_ids" in whole.model_input_names and any(whole.backend_tokenizer.encode("a").type_ids):
            raise ModelError(f"the tokenizer in {config.transformer} gives a text token types other than 0")
        return cls(
            whole.backend_tokenizer,
            config.text,
            include_prompt=config.pooling.include_prompt,
            # Of language models not all are shown any. An empty text then has no token at all, none that is the first.
            needs_ends=not config.encoder.causal or bool({"cls", "max"} & set(config.pooling.modes)),
            special_ids=frozenset(whole.all_special_ids),
        )

    def prompt(self, input_type: InputType = None, name: str | None = None) -> str:
        """What is put before texts: the prompt that the model's files state under that name, or for that input type;
        and where neither is given the one that they call their default.

        A model without a prompt for an input type has an empty one. Raises `RequestError` for another name.
        """
        if name is not None:
            if name not in self._prompts:
                raise RequestError(f"has no prompt named {name!r}; it has {', '.join(map(repr, self._prompts))}")
            return self._prompts[name]
        if input_type is None:
            return self._default_prompt
        # An empty prompt of one name does not hide another: sentence-transformers itself writes "document": "".
        return next((self._prompts[name] for name in _PROMPT_NAMES[input_type] if self._prompts.get(name)), "")

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> list[EncodedText]:
        """One row a text, in order, cut to `max_tokens`, with that prompt before it; without one with the default.

        Raises `RequestError` naming the text that is not Unicode.
        """
        prompt = self._default_prompt if prompt is None else prompt
        prompted = [prompt + text for text in texts] if prompt else texts
        encoded = self._rows(texts, prompted)
        return encoded if self._include_prompt or not prompt else self._without(prompt, encoded)

    def encode_chunks(self, texts: Sequence[tuple[str, Spans]], *, prompt: str | None = None) -> list[EncodedText]:
        """The rows that `encode` makes of whole texts, and which tokens are of each of their chunks.

        Each text comes with where its chunks begin and end, in characters. A text that is cut has none.
        """
        prompt = self._default_prompt if prompt is None else prompt
        rows = self.encode([text for text, _ in texts], prompt=prompt)
        return [
            row if row.lost else replace(row, chunks=self._chunks(prompt, text, chunks))
            for row, (text, chunks) in zip(rows, texts, strict=True)
        ]

    def _chunks(self, prompt: str, text: str, chunks: Spans) -> Spans:
        offsets = self._tokenizer.encode(prompt + text, add_special_tokens=False).offsets
        return chunk_tokens(
            [(begin - len(prompt), end - len(prompt)) for begin, end in offsets], chunks, len(self._head)
        )

    def _rows(self, texts: Sequence[str], prompted: Sequence[str]) -> list[EncodedText]:
        limit = self._room * _CHARS_PER_TOKEN
        short = [index for index, text in enumerate(prompted) if len(text) <= limit]
        try:
            encodings = self._tokenizer.encode_batch_fast([prompted[index] for index in short])
        except TypeError:
            raise RequestError(_not_unicode(texts)) from None
        rows = {index: self._cut(encoding.ids) for index, encoding in zip(short, encodings, strict=True)}
        for index, text in enumerate(prompted):
            if index not in rows:
                try:
                    rows[index] = self._long(text, limit)
                except TypeError:
                    raise RequestError(_not_unicode(texts)) from None
        return [rows[index] for index in range(len(prompted))]

    def check(self, texts: Sequence[str]) -> None:
        """Raises `RequestError` naming the text that is not Unicode."""
        if said := _fault(texts):
            raise RequestError(said)

    def contents(self, texts: Sequence[str]) -> list[EncodedText]:
        """The same rows without the special tokens at their ends, and without a prompt."""
        rows = self._rows(texts, texts)
        return [EncodedText(row.ids[len(self._head) : len(row.ids) - len(self._tail)], row.lost) for row in rows]

    def _without(self, prompt: str, encoded: list[EncodedText]) -> list[EncodedText]:
        """The same rows with the tokens of the prompt marked, which are then read and not pooled.

        As in sentence-transformers they are the first so many as the prompt alone has, its ends included, but for the
        last token where it is named as special.
        """
        (alone,) = self._rows([prompt], [prompt])
        count = len(alone.ids) - (int(alone.ids[-1]) in self._special_ids)
        for text in encoded:
            text.ids[:count] += PROMPT
        return encoded

    def _cut(self, ids: list[int]) -> EncodedText:
        if not ids:  # a row has a token, and nothing of this one is pooled
            return EncodedText(np.array([PROMPT], dtype=np.int32))
        if len(ids) <= self.max_tokens:
            return EncodedText(np.array(ids, dtype=np.int32))
        row = np.array([*ids[: self.max_tokens - len(self._tail)], *self._tail], dtype=np.int32)
        return EncodedText(row, len(ids) - self.max_tokens)

    def _long(self, text: str, size: int) -> EncodedText:
        """The row of a long text from the shortest prefix that settles it, doubling from `size` characters.

        A prefix settles it when one more token than there is room for lies whole before the last word of the prefix
        and well away from the cut: tokenizers work word by word, so nothing after the cut can reach that far back.
        Within a word it can, from any distance: a text without words is read to its end.
        """
        shorten, length = self._shorten, len(text)
        while size < len(text):
            end = _word_end(text, size)
            encoding = self._tokenizer.encode(text[:end], add_special_tokens=False)
            if len(encoding) > self._room:
                word = encoding.word_ids[self._room]
                settled = encoding.offsets[self._room][1] <= end - _MARGIN_CHARS
                if settled and word is not None and word != encoding.word_ids[-1]:
                    ids = [*self._head, *encoding.ids[: self._room], *self._tail]
                    read = max(1, encoding.offsets[self._room - 1][1])
                    # As if the rest had as many tokens for its characters as what was read.
                    lost = max(1, round((length - read) * self._room / read))
                    return EncodedText(np.array(ids, dtype=np.int32), lost)
            if shorten is not None:  # once; ordinary texts need it not at all
                text, shorten = shorten(text), None
            else:
                size *= 2
        return self._cut(self._tokenizer.encode(text).ids)


def chunk_tokens(offsets: Spans, chunks: Spans, first: int) -> Spans:
    """Which tokens are of each chunk, from and to, where the text's own begin at `first`: those whose last characters
    are, for a token may begin with the space before its word."""
    lasts = [end - 1 for _, end in offsets]
    return [(first + bisect_left(lasts, begin), first + bisect_left(lasts, end)) for begin, end in chunks]


def _word_end(text: str, size: int) -> int:
    """The last end of a word in the second half of the first `size` characters, or `size` where there is none."""
    for index in range(size, size // 2, -1):
        if text[index].isspace() and not text[index - 1].isspace():
            return index
    return size


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    encoding = tokenizer.encode("a")
    content = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    if not content:
        raise ModelError("the tokenizer makes no token of the letter a")
    return encoding.ids[: content[0]], encoding.ids[content[-1] + 1 :]


def _not_unicode(texts: Sequence[str]) -> str:
    return _fault(texts) or "a text cannot be tokenized"


def _fault(texts: Sequence[str]) -> str:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"text {index} is not valid Unicode: half of a surrogate pair at character {error.start}"
        except AttributeError:
            return f"text {index} is not a string"
    return ""
