"""Handles for asyncio: as those of `handles.py`, and what waits there is awaited here.

Who is cancelled while waiting leaves the job as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from ..contract import EmbeddingResult, GenerationResult, RerankResult
from ..enqueueing import jobs
from ..talks import cancelling, results
from ..talks.results import Awaited, ResultT
from ..talks.steps import Vigil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..streams import Delta
    from .line import AsyncLine


class AsyncJobHandle(Generic[ResultT]):
    """One job, by its id, as `JobHandle`. Made by an `AsyncProducer`."""

    def __init__(self, job_id: str, line: AsyncLine, result_type: type[ResultT], vigil: Vigil | None = None) -> None:
        self.job_id = job_id
        self._line = line
        self._awaited: Awaited[ResultT] = Awaited(job_id, result_type, vigil)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    async def status(self) -> str:
        """As `JobHandle.status`."""
        return await self._line.hold(results.status(self.job_id))

    async def result(self, timeout_s: float | None = None) -> ResultT:
        """As `JobHandle.result`."""
        answer: ResultT = await self._line.hold(results.result(self._awaited, timeout_s))
        return answer

    async def cancel(self, timeout_s: float = 10) -> bool:
        """As `JobHandle.cancel`."""
        return await self._line.hold(cancelling.cancel(self.job_id, timeout_s))

    async def delete(self) -> None:
        """As `JobHandle.delete`."""
        await self._line.hold(jobs.discarding([self.job_id]))


class AsyncEmbeddingHandle(AsyncJobHandle[EmbeddingResult]):
    """An embedding job, as `EmbeddingHandle`."""

    def __init__(self, job_id: str, line: AsyncLine) -> None:
        super().__init__(job_id, line, EmbeddingResult)


class AsyncRerankHandle(AsyncJobHandle[RerankResult]):
    """A rerank job, as `RerankHandle`."""

    def __init__(self, job_id: str, line: AsyncLine) -> None:
        super().__init__(job_id, line, RerankResult)


class AsyncGenerationHandle(AsyncJobHandle[GenerationResult]):
    """A generation job, as `GenerationHandle`."""

    def __init__(self, job_id: str, line: AsyncLine, *, awaited: bool = True) -> None:
        vigil = Vigil(jobs.awaited_key(job_id)) if awaited else None
        super().__init__(job_id, line, GenerationResult, vigil)

    async def stream(self, timeout_s: float | None = None) -> AsyncIterator[str]:
        """As `GenerationHandle.stream`."""
        async for delta in self.deltas(timeout_s):
            if delta.text and not delta.choice:
                yield delta.text

    async def deltas(self, timeout_s: float | None = None) -> AsyncIterator[Delta]:
        """As `GenerationHandle.deltas`."""
        async for delta in self._line.pieces(results.deltas(self._awaited, timeout_s)):
            yield delta
