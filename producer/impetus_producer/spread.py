"""The producer for several servers."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .client import Closing, Producer
from .enqueueing.spreading import Spread, portions
from .errors import JobNotFoundError, NoServerError
from .handles import EmbeddingHandle, GenerationHandle, RerankHandle
from .servers.discovery import find_redis_urls
from .servers.troubles import client_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .reading.until_error import UntilError


class SpreadProducer(
    Closing, Spread[Producer, EmbeddingHandle, "Iterator[EmbeddingHandle]", GenerationHandle, RerankHandle]
):
    """A `Producer` for several servers, which get jobs by turns; `options` are a `Producer`'s.

    A server that is away is passed over, until it is back. What was on its way there when it went is waited for, as it
    may have arrived; so is a job of its by the handle. Let workers listen to all servers, so that none has more to do
    than another.

    Raises `InvalidRequestError` for servers of which two are one, and a `ServerError` where none is there.
    """

    def __init__(self, redis_urls: Sequence[str], **options: Any) -> None:
        super().__init__([_Member(self, url, **options) for url in redis_urls])
        there = [each.is_there() for each in self.servers]
        if not any(there) and isinstance(error := self.servers[0].presence.error, NoServerError):
            raise error

    def close(self) -> None:
        for each in self.servers:
            each.close()

    def somewhere(self) -> Producer:
        """The one whose turn it is, of those that are there; where none is, the first."""
        by_turns = (next(self.turns) for _ in self.servers)
        return next((each for each in by_turns if each.is_there()), self.servers[0])

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

    def _embed_many(self, texts: UntilError[str], options: Mapping[str, Any]) -> Iterator[EmbeddingHandle]:
        ahead: deque[EmbeddingHandle] = deque()
        for part in portions(texts, options["texts_per_job"]):
            ahead.extend(self.somewhere().embed_many(part, **options))
            while len(ahead) >= options["max_backlog_jobs"]:
                yield ahead.popleft()
        yield from ahead
        if texts.error is not None:
            raise texts.error

    def _embedding(self, payload: Mapping[str, Any], bulk: bool) -> EmbeddingHandle:
        return self.somewhere()._embedding(payload, bulk)

    def _generation(self, payload: Mapping[str, Any], bulk: bool) -> GenerationHandle:
        return self.somewhere()._generation(payload, bulk)

    def _reranking(self, payload: Mapping[str, Any], bulk: bool) -> RerankHandle:
        return self.somewhere()._reranking(payload, bulk)


def open_producer(redis_url: str | Sequence[str] | None = None, **options: Any) -> Producer | SpreadProducer:
    """For a server or several. None: those in `IMPETUS_REDIS_URL`, or the one on this machine."""
    urls = [redis_url] if isinstance(redis_url, str) else find_redis_urls(redis_url or ())
    return SpreadProducer(urls, **options) if len(urls) > 1 else Producer(next(iter(urls), None), **options)


class _Member(Producer):
    """One of several: the jobs that it makes have ids that lead to its server."""

    def __init__(self, all_of_them: SpreadProducer, redis_url: str, **options: Any) -> None:
        super().__init__(connection=client_for(redis_url), **options)
        self._all = all_of_them

    def of(self, job_id: str) -> Producer:
        return self._all.of(job_id)

    def new_id(self) -> str:
        return self._all.new_id_at(self)
