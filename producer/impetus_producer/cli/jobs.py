"""`impetus result` and `impetus cancel`: one job each; and how a result is waited for and shown."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from ..contract import ROLE_FUNCTIONS, ROLE_QUEUES, EmbeddingResult, GenerationResult, RerankResult, SparseBlock
from ..errors import ImpetusError, JobNotFoundError, ResultTimeoutError, StreamRestartedError
from ..handles import GenerationHandle, RerankHandle
from ..servers.connections import hurried
from ..servers.patience import Patience
from ..shown import for_terminal, name_shown
from .ending import noting
from .settings.server import patience_option, patient_producers, redis_urls_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from ..handles import EmbeddingHandle
    from .settings.server import Session

Handle: TypeAlias = GenerationHandle | RerankHandle
HandleT = TypeVar("HandleT", GenerationHandle, RerankHandle)
_CHECK_EVERY_S = 1.0


@click.command(short_help="Print the result of a job.")
@click.argument("job_id")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up waiting after this; 0 only looks. Default: wait as long as it takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result: usage, and where it ran.")
@click.option(
    "--stream", is_flag=True, help="Print a text from its beginning and while it is made; Ctrl-C leaves the job alone."
)
@patience_option
@redis_urls_option
def result(
    job_id: str, timeout_s: float | None, as_json: bool, stream: bool, patience_s: float, redis_urls: tuple[str, ...]
) -> None:
    """Print the result of JOB_ID: a text; one JSON list of numbers for each text that was embedded; or of a reranking
    one line for each document, its score and its number.

    \b
    Examples:
        impetus result 5f2c9b0e --timeout 0
        impetus result 5f2c9b0e --json | jq .usage
        impetus result 5f2c9b0e --stream
    """
    check_stream(stream, as_json)
    with noting(lambda: f"The job is left alone; ask again: impetus result {job_id}"):
        handle = patient_producers(redis_urls, patience_s).handle(job_id)
        if stream:
            if not isinstance(handle, GenerationHandle):
                raise click.UsageError(f"Job {job_id} makes no text: there is none to stream.")
            print_stream(handle, timeout_s, check=None)
            return
        print_result(wait(handle, timeout_s, check=None), as_json)


def check_stream(stream: bool, as_json: bool) -> None:
    if stream and as_json:
        raise click.UsageError("--stream prints the text as it comes, --json the whole result at the end: give one.")


@click.command(short_help="Withdraw a job while it waits, or stop it while it runs.")
@click.argument("job_id")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until a job that runs has stopped. It is stopped later all the same.",
)
@patience_option
@redis_urls_option
def cancel(job_id: str, timeout_s: float, patience_s: float, redis_urls: tuple[str, ...]) -> None:
    """Withdraw JOB_ID while it waits, or stop it while it runs.

    Says "cancelled" once it is so; that it was told to stop where it still runs, with exit status 1.

    \b
    Example:
        impetus cancel 5f2c9b0e
    """
    with noting(lambda: f"It is not known to be cancelled; make sure: impetus cancel {job_id}"):
        handle = patient_producers(redis_urls, patience_s).handle(job_id)
        cancelled = handle.cancel(timeout_s)
    if not cancelled:
        raise ImpetusError(f"job {job_id} had ended before: it is {name_shown(handle.status())}")
    click.echo(f"cancelled {job_id}")


@contextmanager
def enqueued(
    session: Session, role: str, payload: dict[str, Any], handle_of: Callable[[str, Redis, Patience], HandleT]
) -> Iterator[HandleT]:
    """Enqueues a payload that was checked. Its job is withdrawn if the command ends before the block does."""
    producer = session.producer.somewhere()
    # Known before it is enqueued: whoever presses Ctrl-C may do so before that is answered.
    handle = handle_of(producer.new_id(), producer.connection, producer.patience)
    with noting(lambda: _withdrawn(handle_of(handle.job_id, hurried(producer.connection), Patience(0)))):
        producer.enqueue(ROLE_QUEUES[role][0], ROLE_FUNCTIONS[role], {handle.job_id: payload})
        yield handle


def _withdrawn(handle: Handle) -> str:
    """Cancels a job, and says what becomes of it. Told is enough: whoever pressed Ctrl-C does not wait."""
    try:
        if handle.cancel(timeout_s=0):
            return f"Job {handle.job_id} was withdrawn"
        return f"Job {handle.job_id} had ended: impetus result {handle.job_id}"
    except JobNotFoundError:
        return "No job was enqueued"
    except ResultTimeoutError as error:
        if error.__cause__ is None:
            return f"Job {handle.job_id} was told to stop"
        return _not_withdrawn(handle, error)
    except ImpetusError as error:
        return _not_withdrawn(handle, error)
    except KeyboardInterrupt as again:
        again.add_note(_not_withdrawn(handle, "there was no time for it"))
        raise


def _not_withdrawn(handle: Handle, error: object) -> str:
    return f"Job {handle.job_id} could not be withdrawn ({error}); do so later: impetus cancel {handle.job_id}"


def wait(
    handle: EmbeddingHandle | Handle,
    timeout_s: float | None,
    check: Callable[[], None] | None,
) -> EmbeddingResult | GenerationResult | RerankResult:
    """The result; `check` is called now and then until it comes."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while check is not None and (deadline is None or deadline - time.monotonic() > _CHECK_EVERY_S):
        try:
            return handle.result(_CHECK_EVERY_S)
        except ResultTimeoutError:
            check()
    try:
        return handle.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except ResultTimeoutError:
        raise ResultTimeoutError(
            f"job {handle.job_id} is {name_shown(handle.status())}: no result within {timeout_s:g} s. "
            f"Ask again: impetus result {handle.job_id}"
        ) from None


def print_stream(handle: GenerationHandle, timeout_s: float | None, check: Callable[[], None] | None) -> None:
    """The text as it comes. Where the worker begins anew, so does the text, on a new line."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    line_open = False
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            for piece in handle.stream(left_s, on_wait=check):
                line_open = not piece.endswith("\n")  # known before Ctrl-C can come in between
                click.echo(_as_shown(piece), nl=False)
                sys.stdout.flush()
            click.echo()
            return
        except StreamRestartedError:
            _end_line(line_open)
            line_open = False
            click.echo("The worker began anew. The text above is void; this is the new one:", err=True)
        except ResultTimeoutError:
            _end_line(line_open)
            raise ResultTimeoutError(
                f"job {handle.job_id} is {name_shown(handle.status())}: it did not end within {timeout_s:g} s. "
                f"Go on with it: impetus result {handle.job_id} --stream"
            ) from None
        except (ImpetusError, KeyboardInterrupt):
            # What is there stays, and the reason comes on a line of its own.
            _end_line(line_open)
            raise


def _as_shown(text: str) -> str:
    """A model's text: to a file or another program as it is."""
    return for_terminal(text) if sys.stdout.isatty() else text


def _end_line(line_open: bool) -> None:
    if line_open:
        click.echo()


def print_result(answer: EmbeddingResult | GenerationResult | RerankResult, as_json: bool) -> None:
    if isinstance(answer, RerankResult):
        if as_json:
            click.echo(answer.model_dump_json(exclude_none=True))
            return
        for each in answer.results:
            text = f"\t{_as_shown(' '.join(each.document.text.split()))}" if each.document is not None else ""
            click.echo(f"{each.relevance_score:.6f}\t{each.index}{text}")
        return
    if isinstance(answer, GenerationResult):
        click.echo(answer.model_dump_json() if as_json else _as_shown(answer.text))
        return
    if isinstance(answer.embeddings, SparseBlock):
        for vector in [answer] if as_json else answer.sparse:
            click.echo(vector.model_dump_json())
        return
    rows = [list(map(float, row)) for row in answer.vectors]
    if as_json:
        whole = answer.model_dump(mode="json")
        whole["embeddings"] |= {"encoding": "float", "data": rows}
        click.echo(json.dumps(whole))
        return
    for row in rows:
        click.echo(json.dumps(row))
