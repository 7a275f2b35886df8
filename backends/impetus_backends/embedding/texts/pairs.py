"""A query and documents to token rows of both, exactly as transformers makes them for a pair of texts.

The query is tokenised once for all of its documents, and of a long text no more than the model can read. What does not
fit is cut off the longer of the two first (`longest_first`, tokenizers, `utils/truncation.rs`).
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.encoder import SECOND
from impetus_backends.embedding.folder.reranker import read_reranker
from impetus_backends.embedding.texts.chat_pairs import ChatPairEncoder
from impetus_backends.embedding.texts.tokenizer import read_whole_tokenizer
from impetus_backends.embedding.texts.tokens import EncodedText, TextEncoder
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.folder.reranker import RerankerConfig


def load_pairs(folder: Path) -> PairEncoder | ChatPairEncoder:
    """The tokenizer of the reranker in a folder, of either kind; raises `ModelError` where it cannot be read."""
    config = read_reranker(folder)
    if config.question is not None:
        return ChatPairEncoder(config)
    tokenizer = read_whole_tokenizer(config)
    if tokenizer.chat_template is not None and not (folder / "modules.json").is_file():
        raise ModelError(
            f"the tokenizer in {folder} has a chat template, by which sentence-transformers puts pairs where no "
            "modules.json says otherwise: take it away, or save the model with sentence-transformers"
        )
    return PairEncoder(tokenizer, config)


class PairEncoder:
    """The tokenizer of one reranker. Safe to use from one thread at a time."""

    def __init__(self, tokenizer: Any, config: RerankerConfig) -> None:
        """`tokenizer`: of transformers."""
        self.max_tokens = config.text.max_tokens
        """The longest row that `encode` makes, special tokens included."""
        typed = bool(config.encoder.types) and "token_type_ids" in tokenizer.model_input_names
        self._tokenizer = tokenizer.backend_tokenizer
        self._texts = TextEncoder(self._tokenizer, config.text)
        self._parts, self._second = _template(self._tokenizer, typed=typed)
        self._room = self.max_tokens - sum(map(len, self._parts))
        if self._room < 2:
            raise ModelError(f"a row of {self.max_tokens} tokens has no room for a query and a document")

    def encode(
        self, query: str, documents: Sequence[str], *, max_document_tokens: int | None = None
    ) -> list[EncodedText]:
        """One row a document, in order, cut to `max_tokens`; before that each document to `max_document_tokens`.

        Raises `RequestError` naming the text that is not Unicode, the query being text 0.
        """
        asked, *found = self._texts.contents([query, *documents])
        most = max_document_tokens or sys.maxsize

        @cache
        def length_of_query() -> int:
            return self._length(query)

        def is_longer(document: str, row: EncodedText) -> bool:
            """Whether the query is; of two texts that are cut already that takes reading all of them."""
            if asked.truncated != row.truncated:
                return asked.truncated
            if not asked.truncated:
                return len(asked.ids) > min(len(row.ids), most)
            return length_of_query() > min(self._length(document), most)

        return [
            self._pair(asked, row, most, odd_to_query=is_longer(document, row))
            for document, row in zip(documents, found, strict=True)
        ]

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _pair(self, query: EncodedText, document: EncodedText, most: int, *, odd_to_query: bool) -> EncodedText:
        whole = len(query.ids), min(len(document.ids), most)
        first, second = _fitted(*whole, self._room, odd_to_query=odd_to_query)
        lost = query.lost + document.lost + len(query.ids) + len(document.ids) - first - second
        head, between, tail = self._parts
        row = np.concatenate([head, query.ids[:first], between, document.ids[:second] + self._second, tail])
        return EncodedText(row.astype(np.int32, copy=False), lost)


def _fitted(first: int, second: int, room: int, *, odd_to_query: bool) -> tuple[int, int]:
    """How much of two texts is kept where there is room for so many tokens: the longer one is cut down to the shorter,
    and then both alike, the one that was longer having one more where that does not come out even."""
    if first + second <= room:
        return first, second
    if 2 * min(first, second) <= room:
        return (first, room - first) if first < second else (room - second, second)
    half = room // 2
    return (room - half, half) if odd_to_query else (half, room - half)


def _template(tokenizer: Any, *, typed: bool) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """What stands before, between and after two texts, and what is added to the second one's tokens."""
    made = tokenizer.encode("a", "a")
    of = made.sequence_ids
    if 0 not in of or 1 not in of or of.index(1) < of.index(0) or set(made.type_ids) - {0, 1}:
        raise ModelError("the tokenizer makes no pair of two texts")
    marked = [token + SECOND * (typed and kind) for token, kind in zip(made.ids, made.type_ids, strict=True)]
    ends = [index for index, text in enumerate(of) if text is None]
    begin, middle = of.index(0), of.index(1)
    if typed and made.type_ids[begin]:
        raise ModelError("the tokenizer gives a query token types other than 0")
    groups = ([i for i in ends if i < begin], [i for i in ends if begin < i < middle], [i for i in ends if i > middle])
    head, between, tail = (np.array([marked[index] for index in group], np.int32) for group in groups)
    if len(ends) < 2:
        raise ModelError("the tokenizer does not mark where a query ends and a document begins")
    return (head, between, tail), SECOND * (typed and made.type_ids[middle])
