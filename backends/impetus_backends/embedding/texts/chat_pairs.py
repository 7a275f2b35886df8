"""A query and documents as questions to a language model: token rows, as sentence-transformers and the model card of
Qwen3-Reranker make them.

What does not fit is cut off the end of the document, before whatever comes after it. Of a long text no more is read
than the model can.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.texts.tokenizer import read_whole_tokenizer
from impetus_backends.embedding.texts.tokens import EncodedText, TextEncoder
from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.folder.reranker import RerankerConfig
    from impetus_backends.embedding.folder.yes_no import Question

_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_MARKS = " \ue000query\ue000 ", " \ue000document\ue000 "
"""Stand for the texts in a template. The spaces show whether it leaves texts as they are."""
_PAIRS = (("fox", ""), ("", "A longer document,\nof {{ two }} lines."))
"""What a template has to put as the texts that stand for them."""


class ChatPairEncoder:
    """The tokenizer of one reranker that is asked. Safe to use from one thread at a time."""

    def __init__(self, config: RerankerConfig) -> None:
        """Raises `ModelError` where the tokenizer cannot be read, or the template is none for a pair."""
        self.max_tokens = config.text.max_tokens
        """The longest row that `encode` makes."""
        tokenizer = read_whole_tokenizer(config)
        assert config.question is not None, "only a language model is asked"
        self._head, self._between, self._tail = _pieces(tokenizer, config.question)
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.post_processor = None  # the template says all that is put around texts
        self._end = np.array(self._common_end(), dtype=np.int32)
        if self.max_tokens < len(self._ids(self._head + self._between)) + len(self._end) + 2:
            raise ModelError(f"a row of {self.max_tokens} tokens has no room for a query and a document")
        self._texts = TextEncoder(self._tokenizer, replace(config.text, prompts=()), needs_ends=False)

    def encode(
        self, query: str, documents: Sequence[str], *, max_document_tokens: int | None = None
    ) -> list[EncodedText]:
        """One row a document, in order, cut to `max_tokens`; before that each document to `max_document_tokens`.

        Raises `RequestError` naming the text that is not Unicode, the query being text 0.
        """
        self._texts.check([query, *documents])
        asked = self._head + query + self._between
        # As a whole, for a token may hold the end of a document and the beginning of what comes after it.
        rows = self._texts.contents([asked + document + self._tail for document in documents])
        if max_document_tokens is not None:
            (before,) = self._texts.contents([asked.rstrip(" ")])
            most = len(before.ids) + max_document_tokens + len(self._end)
            rows = [self._cut(row, most) if len(row.ids) > most else row for row in rows]
        # Of rows that are just full sentence-transformers cannot tell whether they were cut.
        return [self._cut(row, self.max_tokens) if len(row.ids) >= self.max_tokens else row for row in rows]

    def _common_end(self) -> list[int]:
        """The tokens with which questions end, whatever is asked, as sentence-transformers finds them."""
        first, second = (self._ids(self._head + text + self._between + text + self._tail) for text in ("0", "1 2 3 4"))
        differ = (at for at, (one, other) in enumerate(zip(first[::-1], second[::-1], strict=False)) if one != other)
        return first[len(first) - next(differ, 0) :]

    def _cut(self, row: EncodedText, most: int) -> EncodedText:
        ids = np.concatenate([row.ids[: most - len(self._end)], self._end])
        return EncodedText(ids, row.lost + len(row.ids) - most)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _pieces(tokenizer: Any, question: Question) -> tuple[str, str, str]:
    """What stands before the query, between it and the document, and after that."""
    if not question.by_template:
        return f"{_PREFIX}<Instruct>: {_INSTRUCTION}\n<Query>: ", "\n<Document>: ", _SUFFIX

    if "strftime_now" in str(tokenizer.chat_template):
        raise ModelError("the chat template tells what time it is, so that no pair has the same score twice")

    def put(query: str, document: str) -> str:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        if question.instruction is not None:
            messages.insert(0, {"role": "system", "content": question.instruction})
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=question.add_generation_prompt
                )
            )
        except Exception as error:
            raise ModelError(f"the chat template cannot put a query and a document: {error!s:.300}") from error

    made = put(*_MARKS)
    head, found, rest = made.partition(_MARKS[0])
    between, also, tail = rest.partition(_MARKS[1])
    again = any(mark.strip() in part for mark in _MARKS for part in (head, between, tail))
    if (
        not found
        or not also
        or again
        or any(put(*pair) != head + pair[0] + between + pair[1] + tail for pair in _PAIRS)
    ):
        raise ModelError("the chat template does not put a query and then a document, each once and as it is")
    return head, between, tail
