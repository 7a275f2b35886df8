"""Many documents through a queue, in their order, with Redis holding only a window of them.

Knows the producer, the jobs' bytes and documents. Knows no file and no terminal.
"""

from __future__ import annotations

from collections.abc import Sized
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from ..documents import Document, FailedDocument
from ..enqueueing.texts import MOST_CHARACTERS
from ..errors import InvalidRequestError, MissingExtraError, ServerDataError, ServerError, ServerFullError
from ..reading.until_error import UntilError
from .kept.journal import Keeper, StoreKeeper
from .window import Window
from .windows import Windows
from .works import Embedded, EmbeddedDocument, EmbeddingWork, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from ..client import Producer
    from ..enqueueing.requests import InputType
    from ..spread import SpreadProducer
    from .kept.store import AnswerStore

__all__ = [
    "DEFAULT_BACKLOG_JOBS",
    "DEFAULT_TEXTS_PER_JOB",
    "Embedded",
    "EmbeddedDocument",
    "embed_documents",
    "work_documents",
]

DEFAULT_TEXTS_PER_JOB = 64
DEFAULT_BACKLOG_JOBS = 128
"""Workers sort some thousand texts by length before they batch them, so jobs end in bursts; this is two of those."""

OutcomeT = TypeVar("OutcomeT")
ItemT = TypeVar("ItemT")


def embed_documents(
    producer: Producer | SpreadProducer,
    documents: Iterable[Document | FailedDocument],
    *,
    texts_per_job: int = DEFAULT_TEXTS_PER_JOB,
    max_backlog_jobs: int = DEFAULT_BACKLOG_JOBS,
    model: str | None = None,
    dimensions: int | None = None,
    input_type: InputType | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    truncate: bool = True,
    store: AnswerStore | None = None,
    while_waiting: Callable[[], None] | None = None,
    show_progress: bool = False,
) -> Iterator[Embedded]:
    """Yields each document's vector, or why it has none, in the order of `documents`.

    Reads `documents` lazily and keeps at most about `max_backlog_jobs` jobs, and 32 million characters, in Redis; what
    a job leaves there is deleted once read. Equal texts that are in this window are computed once; with a `store` all
    that are in it, by any run with these options and the same model, are. A document that the contract refuses is never
    sent. A job that fails is sent again text by text, so that only the documents at fault fail. When the iteration is
    given up, the jobs that still wait are withdrawn; when `documents` raises, what was read before is yielded first.
    `while_waiting` is called about twice a second while no result comes; what it raises ends the run. `show_progress`
    draws a bar by tqdm (extra `progress`), in notebooks too.

    A server that goes is waited for, as long as the producer's patience lasts. What was read by then stays read, and
    jobs that a server lost are sent again. Of several servers one that goes is done without: what is read from then on
    goes to the others, and what it had been sent does once they have nothing else to do.

    Raises `InvalidRequestError` for options no document could be embedded with, `JobFailedError` when the worker
    refuses them (such as a model it does not serve) before any document succeeded, a `ServerError` when patience ends.
    """
    work = EmbeddingWork(model, dimensions, input_type, truncate, prompt_name, prompt)
    outcomes = work_documents(
        producer,
        work,
        documents,
        keeper=None if store is None else StoreKeeper(store),
        documents_per_job=texts_per_job,
        max_backlog_jobs=max_backlog_jobs,
        while_waiting=while_waiting,
    )
    return _drawn(outcomes, len(documents) if isinstance(documents, Sized) else None) if show_progress else outcomes


def _drawn(outcomes: Generator[ItemT, None, None], total: int | None) -> Iterator[ItemT]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise MissingExtraError("A bar", "progress") from None

    def drawing() -> Iterator[ItemT]:
        with closing(outcomes), tqdm(total=total, unit=" docs") as bar:
            for outcome in outcomes:
                yield outcome
                bar.update()

    return drawing()


def work_documents(
    producer: Producer | SpreadProducer,
    work: Work[OutcomeT],
    documents: Iterable[Document | FailedDocument],
    *,
    keeper: Keeper | None = None,
    documents_per_job: int,
    max_backlog_jobs: int,
    while_waiting: Callable[[], None] | None = None,
) -> Generator[OutcomeT | FailedDocument, None, None]:
    """`embed_documents` for any kind of work. `keeper` says what is known, and is told of what becomes known."""
    if documents_per_job < 1 or max_backlog_jobs < 1:
        raise InvalidRequestError("texts_per_job and max_backlog_jobs must be at least 1")
    work.check()
    keeper = keeper or Keeper()
    per_job = min(documents_per_job, work.most_per_job)
    return _run(producer, work, documents, keeper, per_job, max_backlog_jobs, while_waiting)


def _run(
    producer: Producer | SpreadProducer,
    work: Work[OutcomeT],
    documents: Iterable[Document | FailedDocument],
    keeper: Keeper,
    per_job: int,
    max_backlog_jobs: int,
    while_waiting: Callable[[], None] | None,
) -> Generator[OutcomeT | FailedDocument, None, None]:
    if keeper.asks_for_fingerprint:
        keeper.accept(work.served(producer.somewhere(), while_waiting))
    windows = Windows([Window(each, work, keeper, per_job, while_waiting) for each in producer.servers])
    # An eighth of the window at a time saves round trips; the other seven keep the workers busy meanwhile.
    step = max(1, max_backlog_jobs // 8)
    reader = _Reader(documents, step * per_job, MOST_CHARACTERS * step // max_backlog_jobs)
    room_to = (max_backlog_jobs - step) * per_job
    try:
        windows.take_up()
        while not reader.exhausted or windows:
            while not reader.exhausted and len(windows) <= room_to and windows.characters < MOST_CHARACTERS:
                windows.admit(reader.read())
            yield from windows.finished()
            if windows.waiting and not windows.collect() and while_waiting is not None:
                while_waiting()
        if reader.error is not None:
            raise reader.error
    except (ServerFullError, ServerDataError):
        raise
    except ServerError:
        # Nobody is there to withdraw from, and asking again would take as long as finding that out did.
        windows.forget()
        raise
    finally:
        windows.close()


class _Reader:
    """Takes some documents at a time, until their iterator ends or raises."""

    def __init__(self, documents: Iterable[Document | FailedDocument], count: int, characters: int) -> None:
        self._source = UntilError(_checked(documents))
        self._documents = iter(self._source)
        self._count = count
        self._characters = characters
        self.exhausted = False

    @property
    def error(self) -> Exception | None:
        return self._source.error

    def read(self) -> list[Document | FailedDocument]:
        part: list[Document | FailedDocument] = []
        characters = 0
        while len(part) < self._count and characters < self._characters:
            try:
                document = next(self._documents)
            except StopIteration:
                self.exhausted = True
                break
            part.append(document)
            characters += len(document.text) if isinstance(document, Document) else 0
        return part


def _checked(documents: Iterable[Any]) -> Iterator[Document | FailedDocument]:
    for index, document in enumerate(documents):
        if not isinstance(document, Document | FailedDocument):
            raise InvalidRequestError(f"documents: item {index} is a {type(document).__name__}, not a Document")
        yield document
