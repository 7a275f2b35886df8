"""The producer for several servers, for asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..enqueueing.spreading import Spread, portions
from ..errors import JobNotFoundError, NoServerError, ServerError
from .client import AsyncProducer
from .handles import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncRerankHandle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from ..enqueueing import jobs
    from ..reading.until_error import UntilError


class AsyncSpreadProducer(
    Spread[
        AsyncProducer,
        Coroutine[Any, Any, AsyncEmbeddingHandle],
        AsyncIterator[AsyncEmbeddingHandle],
        Coroutine[Any, Any, AsyncGenerationHandle],
        Coroutine[Any, Any, AsyncRerankHandle],
    ]
):
    """As `SpreadProducer`, for the tasks of one event loop: what waits there is awaited here.

    Making it talks to nobody. `async with` raises a `ServerError` where none of the servers is there, or one is wrong.
    `connections`: redis-py clients, whose servers to use instead of those of URLs.
    """

    def __init__(self, redis_urls: Sequence[str] = (), *, connections: Sequence[Redis] = (), **options: Any) -> None:
        members = [_Member(self, redis_url=url, **options) for url in redis_urls]
        super().__init__([*members, *(_Member(self, connection=each, **options) for each in connections)])

    async def __aenter__(self) -> AsyncSpreadProducer:
        try:
            there = [await each.is_there() for each in self.servers]
            if not any(there) and isinstance(error := self.servers[0].presence.error, NoServerError):
                raise error
        except ServerError:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As `AsyncProducer.close`."""
        for each in self.servers:
            await each.close()

    async def somewhere(self) -> AsyncProducer:
        """The one whose turn it is, of those that are there; where none is, the first."""
        for _ in self.servers:
            if await (each := next(self.turns)).is_there():
                return each
        return self.servers[0]

    async def handle(self, job_id: str) -> AsyncEmbeddingHandle | AsyncGenerationHandle | AsyncRerankHandle:
        """The handle of a job enqueued earlier, here or elsewhere, be it by a producer that knew other servers."""
        at = self.of(job_id)
        try:
            return await at.handle(job_id)
        except JobNotFoundError:
            for other in self.servers:
                if other is not at:
                    with suppress(JobNotFoundError):
                        return await other.handle(job_id)
            raise

    async def enqueue(
        self,
        queue: str,
        function: str,
        payloads: Mapping[str, Mapping[str, Any]],
        options: jobs.JobOptions | None = None,
    ) -> None:
        """As `AsyncProducer.enqueue`, each at the server that its job's id names."""
        for server, job_ids in self.by_server(payloads).items():
            await server.enqueue(queue, function, {job_id: payloads[job_id] for job_id in job_ids}, options)

    async def _embed_many(
        self, texts: UntilError[str], options: Mapping[str, Any]
    ) -> AsyncIterator[AsyncEmbeddingHandle]:
        ahead: deque[AsyncEmbeddingHandle] = deque()
        for part in portions(texts, options["texts_per_job"]):
            ahead.extend([handle async for handle in (await self.somewhere()).embed_many(part, **options)])
            while len(ahead) >= options["max_backlog_jobs"]:
                yield ahead.popleft()
        for handle in ahead:
            yield handle
        if texts.error is not None:
            raise texts.error

    async def _embedding(self, payload: Mapping[str, Any], bulk: bool) -> AsyncEmbeddingHandle:
        return await (await self.somewhere())._embedding(payload, bulk)

    async def _generation(self, payload: Mapping[str, Any], bulk: bool) -> AsyncGenerationHandle:
        return await (await self.somewhere())._generation(payload, bulk)

    async def _reranking(self, payload: Mapping[str, Any], bulk: bool) -> AsyncRerankHandle:
        return await (await self.somewhere())._reranking(payload, bulk)


class _Member(AsyncProducer):
    """One of several: the jobs that it makes have ids that lead to its server."""

    def __init__(self, all_of_them: AsyncSpreadProducer, **options: Any) -> None:
        super().__init__(**options)
        self._all = all_of_them

    def of(self, job_id: str) -> AsyncProducer:
        return self._all.of(job_id)

    def new_id(self) -> str:
        return self._all.new_id_at(self)
