"""What all requests to one gateway share, and the door that each comes through: who asks, what they may, how much."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request

from impetus_producer.enqueueing.jobs import new_id
from impetus_producer.errors import ImpetusError

from .batch_thread import Batches
from .entry.answers import error_answer
from .entry.bodies import Bodies, parse_object
from .entry.callers import ANYONE, Caller, Keys, Role
from .entry.errors import HttpError, http_error
from .entry.limits import Limits
from .events import HungUpError
from .recalling import Recalling
from .seeing.metrics import Metrics, Stopwatch
from .seeing.overview import Overview
from .seeing.watch import Watch
from .webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from redis import Redis
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

    from impetus_producer import Producer, SpreadProducer
    from impetus_producer.asynchronous import AnyAsyncProducer
    from impetus_producer.batches.store import BatchStore
    from impetus_producer.bulk.recall import Recall

    from .settings import Settings
    from .webhooks import Receiver

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Gateway:
    """One gateway's parts."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        producer: AnyAsyncProducer,
        blocking: Producer | SpreadProducer,
        store: BatchStore,
        receivers: Sequence[Receiver] = (),
        recall: Recall | None = None,
    ) -> None:
        """`blocking`: of the same servers, for what is asked in threads. `store`: of files and batches. `receivers`:
        who is told when a batch ends. `recall`: what was embedded before.
        """
        self.settings = settings
        self.keys = keys
        self.producer = producer
        self.watch = Watch(blocking.servers, settings)
        self.batches = Batches(store, blocking, Webhooks(store, receivers))
        self.recalling = None if recall is None else Recalling(recall)
        self.limits = Limits(settings.max_requests)
        self.bodies = Bodies(settings)
        self.metrics = Metrics(self.watch, self.limits)
        self.overview = Overview(self.watch, self.metrics, store)
        self.is_leaving: Callable[[], bool] = lambda: False
        """Whether it was told to end: what has no end by itself ends then."""
        self._blocking = blocking
        self._afterwards: set[asyncio.Task[None]] = set()

    async def ask(self, question: Callable[[Redis, str], T], job_id: str) -> T:
        """What a function of the producer that blocks answers about a job, asked in a thread."""
        return await asyncio.to_thread(question, self._blocking.of(job_id).connection, job_id)

    async def have_all(self, do: Callable[[Redis], None]) -> None:
        """Has each server told something, in a thread."""
        for server in self._blocking.servers:
            await asyncio.to_thread(do, server.connection)

    def new_id(self, queue: str) -> str:
        """Of a job for a server whose jobs of this queue are taken now, if there is one that was seen lately."""
        taking = self.watch.taking(queue)
        while self._blocking.of(job_id := new_id()) not in taking:
            pass
        return job_id

    def afterwards(self, work: Coroutine[Any, Any, Any]) -> None:
        """Does what nobody waits for, such as cancelling the job of a client that is gone."""
        task = asyncio.create_task(_quietly(work))
        self._afterwards.add(task)
        task.add_done_callback(self._afterwards.discard)

    async def finish(self, within_s: float) -> None:
        """Waits for what is done afterwards."""
        if self._afterwards:
            await asyncio.wait(self._afterwards, timeout=within_s)


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except ImpetusError as error:
        _log.info("%s", error)


@dataclass(slots=True)
class Call:
    """One request, of a caller who may make it."""

    gateway: Gateway
    request: Request
    caller: Caller
    body: bytes = b""
    watch: Stopwatch = field(default_factory=Stopwatch)

    def json(self) -> dict[str, Any]:
        """Raises `HttpError` 400."""
        return parse_object(self.body)

    def may(self, role: Role) -> bool:
        return role in self.caller.roles


class Door:
    """An endpoint as an ASGI application. `role`: what a key has to have; none: no key is needed."""

    def __init__(
        self,
        gateway: Gateway,
        path: str,
        handler: Callable[[Call], Awaitable[Response]],
        role: Role | None = None,
        *,
        limited: bool = False,
        has_body: bool = False,
    ) -> None:
        self._gateway = gateway
        self._path = path
        self._handler = handler
        self._role = role
        self._limited = limited
        """Whether requests take places: those that cost something."""
        self._has_body = has_body
        """Whether the body is read before it is handled."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = Stopwatch()
        status = 499

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (b"x-request-id", f"req_{uuid4().hex}".encode())
                message = {**message, "headers": [*message.get("headers", ()), named]}
            await send(message)

        try:
            await self._answer(Request(scope, receive), watch, noting)
        except (HungUpError, ClientDisconnect):
            self._gateway.metrics.hung_up()
        finally:
            self._gateway.metrics.answered(self._path, status, watch.seconds())

    async def _answer(self, request: Request, watch: Stopwatch, send: Send) -> None:
        gateway = self._gateway
        try:
            check_origin(request, gateway.settings.hosts, gateway.settings.origins, gateway.keys)
            caller = ANYONE if self._role is None else self._admitted(request)
            with (
                gateway.limits.place(caller) if self._limited else nullcontext(),
                gateway.bodies.room(request) if self._has_body else nullcontext() as room,
            ):
                body = b"" if room is None else await gateway.bodies.read(request, room)
                response = await self._handler(Call(gateway, request, caller, body, watch))
                await response(request.scope, request.receive, send)
                return
        except HttpError as error:
            refusal = error
        except ImpetusError as error:
            refusal = http_error(error)
        await error_answer(refusal, self._path)(request.scope, request.receive, send)

    def _admitted(self, request: Request) -> Caller:
        caller = self._gateway.keys.caller(request.headers.get("authorization", ""))
        if self._role is not None and self._role not in caller.roles:
            raise HttpError(403, f"this key has not the role {self._role}", code="missing_role")
        return caller


def check_origin(request: Request, hosts: tuple[str, ...], origins: tuple[str, ...], keys: Keys) -> None:
    """Raises `HttpError` 403 for what a web page of somebody else's has a browser ask.

    Without keys the address is all that protects a gateway: so a page may not ask from elsewhere, nor under a name of
    its own that it has lead here (DNS rebinding).
    """
    host = request.headers.get("host", "")
    if not keys.needed and "*" not in hosts and _name(host) not in _LOOPBACK.union(hosts):
        raise HttpError(403, f"this gateway is not called {_name(host)[:100]!r}: see --allow-host", code="host")
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins and _netloc(origin) != host:
        raise HttpError(403, f"pages from {origin[:200]!r} may not ask: see --allow-origin", code="origin")


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
