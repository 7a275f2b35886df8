"""A run over many documents: what `impetus embed` and `impetus generate -o` have in common."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

import click

from ...bulk.kept.databases import NO_ROOM, NO_ROOM_ERRORS
from ...bulk.kept.journal import Journal
from ...bulk.kept.stores import open_store
from ...bulk.run import work_documents
from ...errors import ImpetusError, InvalidRequestError
from ...reading.duplicates import Ids
from ...reading.source import open_source
from ...shown import printable
from ...watching.runs import Announcement
from ..ending import noting
from ..settings.server import open_session
from .progress import progress
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ...bulk.kept.store import AnswerStore
    from ...bulk.works import Work
    from ...documents import FailedDocument, Read
    from ...reading.options import ReadingOptions
    from ...reading.source import Source
    from ...writing.output import Output
    from ..settings.server import Session
    from .options import RunOptions
    from .progress import Pace


OutcomeT = TypeVar("OutcomeT")
Prepare: TypeAlias = "Callable[[Iterable[Read], Session], Iterable[Read]]"


def _as_they_come(outcomes: Iterator[Any], read: deque[Read]) -> Iterator[tuple[Any, Read]]:
    return ((outcome, read.popleft()) for outcome in outcomes)


@dataclass(frozen=True, slots=True)
class Steps(Generic[OutcomeT]):
    """What is done beside the work itself. `prepared`: to documents before; `paired`: to outcomes, which come in the
    order of what was read, to have each with what it is of; `counts`: whether the bar moves on with this one."""

    prepared: Prepare = lambda documents, session: documents
    paired: Callable[[Iterator[OutcomeT | FailedDocument], deque[Read]], Iterator[tuple[Any, Read]]] = _as_they_come
    counts: Callable[[Read], bool] = lambda document: True


def open_checked(inputs: Sequence[str], reading: ReadingOptions, output: str, options: RunOptions) -> Source:
    """The documents. Raises `InvalidRequestError` for what cannot go with this output, or these options."""
    source = open_source(inputs, reading)
    # Neither OUT nor what is written beside it may be an input, such as one that a pattern matches.
    for written in (output, f"{output}.errors.jsonl", f"{output}.ids.jsonl"):
        for path in source.paths:
            if os.path.exists(written) and path.exists() and os.path.samefile(path, written):
                raise InvalidRequestError(f"INPUT and OUT are the same file: {str(path)!r} is written by this run")
    if options.on_duplicate == "last" and not source.rereadable:
        raise InvalidRequestError("--on-duplicate last reads INPUT twice, which a pipe cannot be: give a file")
    return source


def run(
    source: Source,
    work: Work[OutcomeT],
    out: Output[OutcomeT],
    options: RunOptions,
    worker_options: Sequence[str],
    documents_per_job: int = 1,
    steps: Steps[OutcomeT] | None = None,
) -> None:
    """Works on all documents and says how it went. Raises `click.exceptions.Exit(1)` where some failed."""
    for note in source.notes:
        _say(note)
    ids = Ids(options.on_duplicate, as_text=out.holds_text_ids_only)
    try:
        with noting(lambda: _unfinished(out)), closing(ids), out:
            if not options.resume:
                out.folder.clear()
            with (
                open_session(options.redis_urls, options.patience_s, work.queue, worker_options) as session,
                _open_store(options) as store,
                Journal(out.folder.path, store, jobs_stay=session.stays) as journal,
            ):
                if journal.goes_on:
                    _say(f"Going on with what an earlier run of {out.name} did; --no-resume begins anew.")
                started = time.monotonic()
                _work(source, work, out, ids, journal, session, options, documents_per_job, steps or Steps())
                elapsed_s = time.monotonic() - started
    except OSError as error:
        if isinstance(error, ImpetusError | BrokenPipeError) or error.filename is not None:
            raise
        full = error.errno in NO_ROOM_ERRORS
        reason = f"{out.name!r} cannot be written: {NO_ROOM}" if full else error.strerror or error
        raise ImpetusError(f"{reason}. {_unfinished(out)}") from error
    except ImpetusError:
        if out.folder.is_kept:
            _say(_unfinished(out))
        raise
    columns = [source.empty_columns()] if out.written else []
    summary = Summary(out, journal, elapsed_s, work.makes)
    for sentence in (source.left_out(), *columns, ids.sentence(), *summary.sentences()):
        if sentence is not None:
            _say(sentence)
    if options.as_json:
        click.echo(json.dumps(summary.as_dict()))
    if out.failed:
        raise click.exceptions.Exit(1)


def _work(
    source: Source,
    work: Work[OutcomeT],
    out: Output[OutcomeT],
    ids: Ids,
    journal: Journal,
    session: Session,
    options: RunOptions,
    documents_per_job: int,
    steps: Steps[OutcomeT],
) -> None:
    # Outcomes come in the order of what was read: the oldest of these is the next one's.
    read: deque[Read] = deque()
    documents = steps.prepared(ids.checked(lambda: source), session)
    announcement = Announcement(session.producer.somewhere(), work.label, out.name)

    def tell(pace: Pace) -> None:
        announcement.tell(pace.done, pace.total, pace.rate, pace.left_s)

    with (
        closing(announcement),
        progress(options.progress, source.count, lambda: journal.computed > 0, work.label, tell=tell) as (
            advance,
            look,
        ),
    ):

        def while_waiting() -> None:
            session.check()
            look()

        outcomes = work_documents(
            session.producer,
            work,
            _noted(documents, read),
            keeper=journal,
            documents_per_job=documents_per_job,
            max_backlog_jobs=options.max_backlog_jobs,
            while_waiting=while_waiting,
        )
        # Closing withdraws what still waits, however this ends.
        with closing(cast("Any", outcomes)):
            for outcome, document in steps.paired(outcomes, read):
                out.write(outcome, document)
                if steps.counts(document):
                    advance()
    if not out.written and not out.failed:
        raise ImpetusError(f"there are no documents in {source.name!r}")


def _open_store(options: RunOptions) -> AbstractContextManager[AnswerStore | None]:
    return nullcontext() if options.store is None else open_store(options.store, patience_s=options.patience_s)


def _noted(documents: Iterable[Read], read: deque[Read]) -> Iterator[Read]:
    for document in documents:
        read.append(document)
        yield document


def _unfinished(out: Output[Any]) -> str:
    if not out.folder.is_kept:
        return f"{out.name} was not written; the jobs that still waited were withdrawn."
    return (
        f"{out.name} is not whole yet. What is done is kept in {out.folder.path.name}: run the same command again to "
        "go on."
    )


def _say(sentence: str) -> None:
    click.echo(printable(sentence), err=True)
