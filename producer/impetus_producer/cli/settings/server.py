"""Which server a command talks to, what it says when nobody works there, and the option that names it."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...client import Producer
from ...contract import role_of_queue
from ...errors import ServerError
from ...servers.discovery import find_redis_urls
from ...servers.local import LocalServer
from ...servers.patience import DEFAULT_PATIENCE_S, PATIENCE_VARIABLE
from ...shown import name_shown, without_password
from ...spread import SpreadProducer, open_producer
from ...watching.fleet import read_fleet
from ..ending import check_signals
from . import server_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")

_LOOK_EVERY_S = 5.0


_HELP = "The Redis or Valkey server.  [default: the one that `impetus-worker run` keeps on this machine]"
redis_urls_option = server_option.redis_urls_option(_HELP)


def patience_option(command: CommandT) -> CommandT:
    return click.option(
        "--patience",
        "patience_s",
        type=click.FloatRange(min=0),
        default=DEFAULT_PATIENCE_S,
        show_default=True,
        envvar=PATIENCE_VARIABLE,
        show_envvar=True,
        metavar="SECONDS",
        help="How long to wait, each time, for a server that goes away; at the start, one that is away is an error.",
    )(command)


def patient_producers(redis_urls: Sequence[str], patience_s: float) -> Producer | SpreadProducer:
    """A producer for these servers, or those that are found, that says on stderr when it waits for one."""
    producer = open_producer(redis_urls, patience_s=patience_s)
    for each in producer.servers:
        each.patience.say = lambda sentence: click.echo(sentence, err=True)
    return producer


@dataclass(frozen=True, slots=True)
class Session:
    """A server to work with, or several, and what to call while waiting for it."""

    producer: Producer | SpreadProducer
    check: Callable[[], None]
    """Says or raises why nothing comes. Cheap; call it about once a second."""
    stays: bool = True
    """Whether what is enqueued is there after the session."""


@contextmanager
def open_session(
    redis_urls: Sequence[str], patience_s: float, queue: str | None, worker_options: Sequence[str]
) -> Iterator[Session]:
    """The servers given or found; where there is none, one of our own, with a worker, for the time of the block.

    `queue`: said on stderr where nobody listens to it.
    """
    check_signals()
    urls = find_redis_urls(redis_urls)
    if not urls:
        with _own_session(queue, worker_options) as session:
            yield session
    else:
        producer = patient_producers(urls, patience_s)
        yield Session(producer, _noticing(producer, queue, urls))


def _noticing(producer: Producer | SpreadProducer, queue: str | None, urls: Sequence[str]) -> Callable[[], None]:
    notices = [_Notice(each, queue, url) for each, url in zip(producer.servers, urls, strict=True)]

    def look() -> None:
        check_signals()
        for notice in notices:
            notice()

    look()
    return look


@contextmanager
def _own_session(queue: str | None, worker_options: Sequence[str]) -> Iterator[Session]:
    server = LocalServer(worker_options)
    click.echo("No server was given or found: starting one, and a worker, for this command.", err=True)
    with server:
        try:
            # Nobody starts this one again.
            producer = Producer(server.url, patience_s=0)
            notice = _Notice(producer, queue, None)

            def check() -> None:
                check_signals()
                server.check()
                notice()

            yield Session(producer, check, stays=False)
        except ServerError:
            # The server went with its worker, and that one's last words say why.
            server.check_soon()
            raise


class _Notice:
    """Says on stderr, once each, why nobody works at a queue: nobody listens to it, or the model is being loaded.

    `url`: of the server; None where its worker is on the way.
    """

    def __init__(self, producer: Producer, queue: str | None, url: str | None) -> None:
        self._producer = producer
        self._queue = queue
        self._url = url
        self._next_look = 0.0
        self._said: set[str] = set()

    def __call__(self) -> None:
        # Whoever waits for the server says so.
        if self._producer.patience.away or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        with suppress(ServerError):
            self._look()

    def _look(self) -> None:
        fleet = read_fleet(self._producer.connection)
        if fleet.suspended:
            self._say("The workers are suspended; waiting. Let them go on: rq resume")
        elif self._queue is None:
            return
        elif not fleet.workers_left_out and not fleet.listening_to(self._queue):
            if self._url is not None:
                self._say(f"{no_worker([self._queue], self._url)} Waiting.")
        elif (loading := [each for each in fleet.workers if each.alive and self._queue in each.queues]) and not any(
            each.serves(self._queue) for each in loading
        ):
            self._say(f"The worker {name_shown(loading[0].name)} is loading its model; waiting.")

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            click.echo(sentence, err=True)


def no_worker(queues: Sequence[str], url: str) -> str:
    reranks = any(role_of_queue(queue) == "rerank" for queue in queues)
    option = " --rerank-model FOLDER|ID" if reranks else ""
    return (
        f"No worker is listening to {', '.join(queues)}. "
        f"Start one: impetus-worker run --redis-url {without_password(url)}{option}."
    )
