"""Several servers as one: each job is at one of them, which its id tells.

The highest hash of a server and the id together decides (rendezvous hashing), so that whoever knows the same servers
looks for a job where it was put, and a server more moves no other's jobs.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from hashlib import blake2b
from itertools import cycle
from typing import TYPE_CHECKING, Any

from .client import Producer
from .enqueueing import jobs
from .enqueueing.requests import Requests
from .enqueueing.texts import MOST_CHARACTERS, check_many, checked, parts
from .errors import InvalidRequestError, JobNotFoundError
from .handles import EmbeddingHandle, GenerationHandle, RerankHandle
from .reading.until_error import UntilError
from .servers.discovery import find_redis_urls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis import Redis

_JOBS_AT_ONCE = 32
"""So many of `embed_many` go to one server before it is the next one's turn."""


class SpreadProducer(Requests[EmbeddingHandle, "Iterator[EmbeddingHandle]", GenerationHandle, RerankHandle]):
    """A `Producer` for several servers, which get jobs by turns; `options` are a `Producer`'s.

    A handle asks the server that its job is at. One that is away is waited for as a lone one is: its share of what is
    enqueued waits, and goes to no other. Let workers listen to all of them, so that none has more to do than another.
    Raises `InvalidRequestError` for servers of which two are one.
    """

    def __init__(self, redis_urls: Sequence[str], **options: Any) -> None:
        self.servers: tuple[Producer, ...] = tuple(_Member(self, url, **options) for url in redis_urls)
        self._names = [_name(each.connection) for each in self.servers]
        if not self.servers or len(set(self._names)) < len(self._names):
            raise InvalidRequestError("give at least one server, and each once")
        first = self.servers[0]
        super().__init__(
            first.options.timeout_s, first.options.result_ttl_s, first.options.failure_ttl_s, first.patience.limit_s
        )
        self._turns = cycle(self.servers)

    def of(self, job_id: str) -> Producer:
        """The one whose server a job of this id is at."""
        hashes = [blake2b(f"{name} {job_id}".encode(errors="replace"), digest_size=8).digest() for name in self._names]
        return self.servers[hashes.index(max(hashes))]

    def handle(self, job_id: str) -> EmbeddingHandle | GenerationHandle | RerankHandle:
        """The handle of a job enqueued earlier, here or elsewhere, be it by a producer that knew other servers."""
        at = self.of(job_id)
        try:
            return at.handle(job_id)
        except JobNotFoundError:
            for other in self.servers:
                if other is not at:
                    with suppress(JobNotFoundError):
                        return other.handle(job_id)
            raise

    def embed_many(
        self, texts: Iterable[str], *, texts_per_job: int = 64, max_backlog_jobs: int = 256, **options: Any
    ) -> Iterator[EmbeddingHandle]:
        """As `Producer.embed_many`, with as many jobs on each server's queue."""
        check_many(texts, texts_per_job, max_backlog_jobs)
        options |= {"texts_per_job": texts_per_job, "max_backlog_jobs": max_backlog_jobs}
        self.servers[0].embed_many((), **options)  # raises at once for options that no job could have
        return self._embed_many(UntilError(checked(texts)), texts_per_job, max_backlog_jobs, options)

    def _embed_many(
        self, texts: UntilError[str], texts_per_job: int, max_backlog_jobs: int, options: Mapping[str, Any]
    ) -> Iterator[EmbeddingHandle]:
        ahead: deque[EmbeddingHandle] = deque()
        for part in parts(texts, texts_per_job * _JOBS_AT_ONCE, MOST_CHARACTERS // 4, len):
            ahead.extend(next(self._turns).embed_many(part, **options))
            while len(ahead) >= max_backlog_jobs:
                yield ahead.popleft()
        yield from ahead
        if texts.error is not None:
            raise texts.error

    def _embedding(self, payload: Mapping[str, Any], bulk: bool) -> EmbeddingHandle:
        return next(self._turns)._embedding(payload, bulk)

    def _generation(self, payload: Mapping[str, Any], bulk: bool) -> GenerationHandle:
        return next(self._turns)._generation(payload, bulk)

    def _reranking(self, payload: Mapping[str, Any], bulk: bool) -> RerankHandle:
        return next(self._turns)._reranking(payload, bulk)


def open_producer(redis_url: str | Sequence[str] | None = None, **options: Any) -> Producer | SpreadProducer:
    """For a server or several. None: those in `IMPETUS_REDIS_URL`, or the one on this machine."""
    urls = [redis_url] if isinstance(redis_url, str) else find_redis_urls(redis_url or ())
    return SpreadProducer(urls, **options) if len(urls) > 1 else Producer(next(iter(urls), None), **options)


class _Member(Producer):
    """One of several: the jobs that it makes have ids that lead to its server."""

    def __init__(self, all_of_them: SpreadProducer, redis_url: str, **options: Any) -> None:
        super().__init__(redis_url, **options)
        self._all = all_of_them

    def of(self, job_id: str) -> Producer:
        return self._all.of(job_id)

    def new_id(self) -> str:
        while self.of(job_id := jobs.new_id()) is not self:
            pass
        return job_id


def _name(connection: Redis) -> str:
    """What tells servers apart: where they are, and not who we are to them."""
    pool: Any = connection.connection_pool
    settings = pool.connection_kwargs
    place = getattr(pool, "service_name", None) or settings.get("path") or f"{settings.get('host')}:{settings['port']}"
    return f"{place}/{settings.get('db', 0)}"
