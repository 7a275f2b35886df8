"""The producer for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from .. import contract
from ..enqueueing import jobs
from ..enqueueing.requests import Requests
from ..errors import ServerError, ServerNotReadyError
from ..servers.connections import for_asyncio, like
from ..servers.troubles import client_for
from ..talks.presence import Presence
from ..talks.results import role_of
from ..talks.steps import Question, Vigil
from .handles import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncRerankHandle
from .line import AsyncLine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from ..talks.steps import Talk


T = TypeVar("T")


class AsyncProducer(
    Requests[
        Coroutine[Any, Any, AsyncEmbeddingHandle],
        AsyncIterator[AsyncEmbeddingHandle],
        Coroutine[Any, Any, AsyncGenerationHandle],
        Coroutine[Any, Any, AsyncRerankHandle],
    ]
):
    """As `Producer`, for the tasks of one event loop: what waits there is awaited here, and `embed_many` is iterated
    with `async for`.

        async with AsyncProducer("redis://localhost:6379/0") as producer:
            handle = await producer.embed(["first text", "second text"])
            vectors = (await handle.result(timeout_s=30)).vectors

    Making it talks to nobody. `async with` raises a `ServerError` where there is no server or a wrong one; without it,
    who asks first finds out, with patience. One connection waits for all jobs, however many; some more ask.
    `connection`: a redis-py client, for asyncio or not, whose server to use.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        connection: AsyncRedis | Redis | None = None,
        timeout_s: int = contract.DEFAULT_TIMEOUT_S,
        result_ttl_s: int = contract.DEFAULT_RESULT_TTL_S,
        failure_ttl_s: int = contract.DEFAULT_FAILURE_TTL_S,
        patience_s: float | None = None,
    ) -> None:
        super().__init__(timeout_s, result_ttl_s, failure_ttl_s, patience_s)
        model = like(connection, asyncio=True) if connection is not None else client_for(redis_url)
        self.connection: AsyncRedis = for_asyncio(model)
        self.presence = Presence()
        self._line = AsyncLine(self.connection, self.patience)

    async def __aenter__(self) -> AsyncProducer:
        try:
            with suppress(ServerNotReadyError):
                await self._line.check()
        except ServerError:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. Jobs go on; who still waits for one gets an `ImpetusError`."""
        await self._line.close()

    @property
    def servers(self) -> tuple[AsyncProducer, ...]:
        """Itself: of one server."""
        return (self,)

    def of(self, job_id: str) -> AsyncProducer:
        """The one whose server a job of this id is at: itself."""
        return self

    def by_server(self, job_ids: Iterable[str]) -> dict[AsyncProducer, list[str]]:
        """Which of these jobs are where: all here."""
        found = list(job_ids)
        return {self: found} if found else {}

    async def is_there(self) -> bool:
        """Whether its server answers, which is not waited for. Raises where waiting would not help."""
        return await self._line.hold(self.presence.look())

    async def ask(self, question: Question[T]) -> T:
        """The answer, waited for as long as patience lasts; `talks/steps.py` says what a question is."""
        return await self._line.ask(question)

    async def hold(self, talk: Talk[T]) -> T:
        """What comes of a talk that has no pieces."""
        return await self._line.hold(talk)

    async def handle(self, job_id: str) -> AsyncEmbeddingHandle | AsyncGenerationHandle | AsyncRerankHandle:
        """The handle of a job enqueued earlier, here or elsewhere."""
        return self.handle_for(await self._line.hold(role_of(job_id)), job_id)

    def handle_for(
        self, role: str, job_id: str, *, awaited: bool = True
    ) -> AsyncEmbeddingHandle | AsyncGenerationHandle | AsyncRerankHandle:
        """As `handle`, of a job of this role, without asking whether there is one."""
        if role == "generation":
            return self.generation_handle(job_id, awaited=awaited)
        return self.rerank_handle(job_id) if role == "rerank" else self.embedding_handle(job_id)

    async def enqueue(
        self,
        queue: str,
        function: str,
        payloads: Mapping[str, Mapping[str, Any]],
        options: jobs.JobOptions | None = None,
    ) -> int:
        """Enqueues payloads that were checked, by their jobs' ids; returns the queue's new length.

        May be asked again with the same ids: what is there stays as it is. `options`: others than the producer's own.
        """
        awaited = [job_id for job_id, payload in payloads.items() if payload.get("cancel_if_abandoned")]
        for job_id in awaited:
            # Before there is a job that a worker could find abandoned.
            await self._line.ask(Question(Vigil(jobs.awaited_key(job_id)).say))
        return await self._line.ask(jobs.enqueueing(queue, function, payloads, options or self.options))

    def embedding_handle(self, job_id: str) -> AsyncEmbeddingHandle:
        """As `handle`, of a job that embeds, without asking whether there is one."""
        return AsyncEmbeddingHandle(job_id, self._line)

    def generation_handle(self, job_id: str, *, awaited: bool = True) -> AsyncGenerationHandle:
        """As `handle`, of a job that generates, without asking whether there is one."""
        return AsyncGenerationHandle(job_id, self._line, awaited=awaited)

    def rerank_handle(self, job_id: str) -> AsyncRerankHandle:
        """As `handle`, of a job that reranks, without asking whether there is one."""
        return AsyncRerankHandle(job_id, self._line)

    async def _embedding(self, payload: Mapping[str, Any], bulk: bool) -> AsyncEmbeddingHandle:
        job_id = await self._line.hold(self._enqueueing_one("embedding", payload, bulk))
        return AsyncEmbeddingHandle(job_id, self._line)

    async def _embeddings(self, talk: Talk[None]) -> AsyncIterator[AsyncEmbeddingHandle]:
        async for job_id in self._line.pieces(talk):
            yield AsyncEmbeddingHandle(job_id, self._line)

    async def _reranking(self, payload: Mapping[str, Any], bulk: bool) -> AsyncRerankHandle:
        return self.rerank_handle(await self._line.hold(self._enqueueing_one("rerank", payload, bulk)))

    async def _generation(self, payload: Mapping[str, Any], bulk: bool) -> AsyncGenerationHandle:
        job_id = await self._line.hold(self._enqueueing_one("generation", payload, bulk))
        return AsyncGenerationHandle(job_id, self._line, awaited=bool(payload.get("cancel_if_abandoned")))
