"""The producer: puts requests on the queues and hands out what will become their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from . import contract
from .enqueueing import jobs
from .enqueueing.requests import Requests
from .handles import EmbeddingHandle, GenerationHandle, RerankHandle
from .line import Line
from .servers.troubles import adopt, connect
from .talks.presence import Presence
from .talks.results import role_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis import Redis

    from .talks.steps import Talk


class Closing:
    """Closed when a `with` block ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections. Jobs go on, and a handle that is asked makes a new one."""
        raise NotImplementedError


class Producer(Closing, Requests[EmbeddingHandle, "Iterator[EmbeddingHandle]", GenerationHandle, RerankHandle]):
    """Enqueues jobs at one server.

    `redis_url`: the server; without it `IMPETUS_REDIS_URL`, else the server that `impetus-worker run` keeps on this
    machine. `connection`: a redis-py client whose server to use instead; connections of our own are made from its
    settings. `patience_s`: how long everything here and in the handles waits for a server that restarts, fails over or
    is away, each time; without it `IMPETUS_PATIENCE_S`, else 300. Only making the producer does not wait. What waited
    is not enqueued twice. Times in seconds. Safe to share between threads.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        connection: Redis | None = None,
        timeout_s: int = contract.DEFAULT_TIMEOUT_S,
        result_ttl_s: int = contract.DEFAULT_RESULT_TTL_S,
        failure_ttl_s: int = contract.DEFAULT_FAILURE_TTL_S,
        patience_s: float | None = None,
    ) -> None:
        super().__init__(timeout_s, result_ttl_s, failure_ttl_s, patience_s)
        self.connection = adopt(connection) if connection is not None else connect(redis_url)
        self.presence = Presence()
        self._line = Line(self.connection, self.patience)

    def close(self) -> None:
        self.connection.close()

    def handle(self, job_id: str) -> EmbeddingHandle | GenerationHandle | RerankHandle:
        """The handle of a job enqueued earlier, here or elsewhere."""
        kinds: dict[str, type[EmbeddingHandle | GenerationHandle | RerankHandle]] = {
            "embedding": EmbeddingHandle,
            "generation": GenerationHandle,
            "rerank": RerankHandle,
        }
        return kinds[self._line.hold(role_of(job_id))](job_id, self.connection, self.patience)

    @property
    def servers(self) -> tuple[Producer, ...]:
        """Itself: of one server."""
        return (self,)

    def of(self, job_id: str) -> Producer:
        """The one whose server a job of this id is at: itself."""
        return self

    def somewhere(self) -> Producer:
        """One whose server is there, as far as is known: itself."""
        return self

    def is_there(self) -> bool:
        """Whether its server answers, which is not waited for. Raises where waiting would not help."""
        return self._line.hold(self.presence.look())

    def enqueue(self, queue: str, function: str, payloads: Mapping[str, Mapping[str, Any]]) -> int:
        """Enqueues payloads that were checked, by their jobs' ids; returns the queue's new length.

        May be asked again with the same ids: what is there stays as it is.
        """
        return self._line.ask(jobs.enqueueing(queue, function, payloads, self.options))

    def _embedding(self, payload: Mapping[str, Any], bulk: bool) -> EmbeddingHandle:
        job_id = self._line.hold(self._enqueueing_one("embedding", payload, bulk))
        return EmbeddingHandle(job_id, self.connection, self.patience)

    def _embeddings(self, talk: Talk[None]) -> Iterator[EmbeddingHandle]:
        for job_id in self._line.pieces(talk):
            yield EmbeddingHandle(job_id, self.connection, self.patience)

    def _reranking(self, payload: Mapping[str, Any], bulk: bool) -> RerankHandle:
        job_id = self._line.hold(self._enqueueing_one("rerank", payload, bulk))
        return RerankHandle(job_id, self.connection, self.patience)

    def _generation(self, payload: Mapping[str, Any], bulk: bool) -> GenerationHandle:
        job_id = self._line.hold(self._enqueueing_one("generation", payload, bulk))
        return GenerationHandle(
            job_id, self.connection, self.patience, awaited=bool(payload.get("cancel_if_abandoned"))
        )
