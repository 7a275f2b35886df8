"""Many documents through the embedding queue, in their order, with Redis holding only a window of them.

Knows the producer, the jobs' bytes and documents. Knows no file and no terminal.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from . import contract
from .documents import Document, FailedDocument
from .errors import InvalidRequestError, ServerDataError, ServerError, ServerFullError
from .window import Embedded, EmbeddedDocument, Options, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .client import Producer
    from .requests import InputType

__all__ = ["DEFAULT_BACKLOG_JOBS", "DEFAULT_TEXTS_PER_JOB", "Embedded", "EmbeddedDocument", "embed_documents"]

DEFAULT_TEXTS_PER_JOB = 64
DEFAULT_BACKLOG_JOBS = 128
"""Workers sort some thousand texts by length before they batch them, so jobs end in bursts; this is two of those."""
_CHARACTERS_PER_JOB = contract.MAX_TEXT_BYTES
"""Jobs are closed early past this, far below the largest payload that a worker reads."""


def embed_documents(
    producer: Producer,
    documents: Iterable[Document | FailedDocument],
    *,
    texts_per_job: int = DEFAULT_TEXTS_PER_JOB,
    max_backlog_jobs: int = DEFAULT_BACKLOG_JOBS,
    model: str | None = None,
    dimensions: int | None = None,
    input_type: InputType | None = None,
    truncate: bool = True,
    while_waiting: Callable[[], None] | None = None,
) -> Iterator[Embedded]:
    """Yields each document's vector, or why it has none, in the order of `documents`.

    Reads `documents` lazily and keeps at most about `max_backlog_jobs` jobs in Redis; what a job leaves there is
    deleted once read. A document that the contract refuses is never sent. A job that fails is sent again text by
    text, so that only the documents at fault fail. When the iteration is given up, the jobs that still wait are
    withdrawn. `while_waiting` is called about twice a second while no result comes; what it raises ends the run.

    A server that goes is waited for, as long as the producer's patience lasts. What was read by then stays read, and
    jobs that a server lost are sent again.

    Raises `InvalidRequestError` for options no document could be embedded with, `JobFailedError` when the worker
    refuses them (such as a model it does not serve) before any document succeeded, a `ServerError` when patience ends.
    """
    if texts_per_job < 1 or max_backlog_jobs < 1:
        raise InvalidRequestError("texts_per_job and max_backlog_jobs must be at least 1")
    options = Options(model, dimensions, input_type, truncate)
    options.payload(["no text in particular"])
    return _run(Window(producer, options, while_waiting), documents, texts_per_job, max_backlog_jobs, while_waiting)


def _run(
    window: Window,
    documents: Iterable[Document | FailedDocument],
    texts_per_job: int,
    max_backlog_jobs: int,
    while_waiting: Callable[[], None] | None,
) -> Iterator[Embedded]:
    parts = _parts(documents, min(texts_per_job, contract.MAX_TEXTS_PER_JOB))
    # An eighth of the window at a time saves round trips; the other seven keep the workers busy meanwhile.
    step = max(1, max_backlog_jobs // 8)
    exhausted = False
    try:
        while not exhausted or window.open:
            while not exhausted and window.open + step <= max_backlog_jobs:
                group = list(islice(parts, step))
                exhausted = len(group) < step
                window.send(group)
            yield from window.finished()
            if window.waiting and not window.collect() and while_waiting is not None:
                while_waiting()
    except (ServerFullError, ServerDataError):
        raise
    except ServerError:
        # Nobody is there to withdraw from, and asking again would take as long as finding that out did.
        window.forget()
        raise
    finally:
        window.close()


def _parts(documents: Iterable[Document | FailedDocument], size: int) -> Iterator[list[Document | FailedDocument]]:
    """Documents in lists of `size`, or fewer where the texts are long."""
    part: list[Document | FailedDocument] = []
    characters = 0
    for document in documents:
        length = len(document.text) if isinstance(document, Document) else 0
        if part and (len(part) >= size or characters + length > _CHARACTERS_PER_JOB):
            yield part
            part, characters = [], 0
        part.append(document)
        characters += length
    if part:
        yield part
