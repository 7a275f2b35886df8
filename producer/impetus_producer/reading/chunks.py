"""Long documents in chunks of so many tokens, ending at paragraphs and sentences where it can be.

Knows documents and one tokenizer. Knows no file format and no Redis.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..documents import ChunkedDocument, Document, FailedDocument
from ..errors import ImpetusError, InvalidRequestError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..documents import Read

OutcomeT = TypeVar("OutcomeT")
COLUMNS = ("chunk", "start", "end")
"""What a chunk has beside its document's columns: its number, from 0, and the characters of the text that it is."""


def open_tokenizer(name: str) -> Any:
    """The tokenizer of a model: a folder that holds `tokenizer.json`, such a file, or a Hugging Face id.

    Raises `ImpetusError` where there is none.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("--chunk", "chunks") from None
    path = Path(name)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # noqa: BLE001 - what the library raises has no common base
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise ImpetusError(
            f"the tokenizer of {name!r} cannot be had: {reason}; give its folder or its tokenizer.json with --tokenizer"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Chunker:
    """Cuts texts. `tokens`: the most of a chunk, with those that the model puts around a text; `overlap`: about how
    many of them the next chunk begins with again.
    """

    def __init__(self, tokenizer: Any, tokens: int, overlap: int = 0) -> None:
        try:
            from semantic_text_splitter import TextSplitter
        except ImportError:
            raise MissingExtraError("--chunk", "chunks") from None
        room = tokens - tokenizer.num_special_tokens_to_add(False)
        if room < 1 or overlap >= room:
            raise InvalidRequestError(
                f"--chunk {tokens} has room for {max(0, room)} tokens of a text, and --overlap {overlap} must be less"
            )
        self._splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, room, overlap)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each chunk begins and ends, in characters. A text without any word is one chunk."""
        cut = self._splitter.chunk_indices(text)
        return [(start, start + len(chunk)) for start, chunk in cut] or [(0, len(text))]


def chunked(documents: Iterable[Read], chunker: Chunker) -> Iterator[Read]:
    """Each document as its chunks: of the same id and row, with the values of `COLUMNS` behind its own."""
    for document in documents:
        if isinstance(document, FailedDocument):
            yield document
            continue
        for number, (start, end) in enumerate(chunker.spans(document.text)):
            yield replace(with_place(document, number, start, end), text=document.text[start:end])


def with_place(document: Document, number: int, start: int, end: int) -> Document:
    """The document with the values of `COLUMNS` behind its own."""
    return replace(document, columns=(*document.columns, number, start, end))


def marked(documents: Iterable[Read], chunker: Chunker) -> Iterator[Read]:
    """Each document as it is, with its chunks marked."""
    for document in documents:
        if isinstance(document, FailedDocument):
            yield document
        else:
            yield ChunkedDocument(
                document.id, document.text, document.row, document.file, document.columns,
                tuple(chunker.spans(document.text)),
            )  # fmt: skip


def is_first(document: Read) -> bool:
    """Whether this is the first chunk of its document, or one that could not be read."""
    return not isinstance(document, Document) or document.columns[-len(COLUMNS)] == 0


def told(outcome: OutcomeT | FailedDocument, chunk: Read) -> OutcomeT | FailedDocument:
    """What became of a chunk, which says of which where it failed."""
    if not isinstance(outcome, FailedDocument) or not isinstance(chunk, Document):
        return outcome
    number, start, _ = chunk.columns[-len(COLUMNS) :]
    return replace(outcome, reason=f"chunk {number}, from character {start + 1} on: {outcome.reason}")
