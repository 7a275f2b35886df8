"""Generation jobs through Redis, for the parts: a worker of one model, and requests put on its queue."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from impetus_producer import GenerationHandle
from impetus_producer.contract import GENERATE_FUNCTION, GENERATION_QUEUE
from impetus_producer.enqueueing import jobs

from ..means.servers import worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ..means.servers import Server

LIMIT_S = 120.0
"""The longest that the bench waits for any one job."""
_OPTIONS = jobs.JobOptions(timeout_s=300, result_ttl_s=900, failure_ttl_s=900)


@contextlib.contextmanager
def generating(
    on: Server, folder: Path, environment: Mapping[str, str], rows: int = 16, more: Sequence[str] = ()
) -> Iterator[None]:
    """A generation worker of the model in `folder`, warm: each of its rows has run once. `more`: of its options."""
    options = ["--generation-model", str(folder), "--max-concurrent-generations", str(rows), *more]
    with worker(on, *options, role="generation", environment=environment):
        warm = [{"prompt": f"{number} warm up", "max_tokens": 16, "temperature": 0.0} for number in range(rows)]
        for handle in submit(on, warm):
            handle.result(timeout_s=LIMIT_S)
        yield


def submit(on: Server, payloads: Sequence[Mapping[str, Any]]) -> list[GenerationHandle]:
    """Enqueues them in one round trip, as any service may that knows the contract."""
    by_id = {jobs.new_id(): payload for payload in payloads}
    jobs.enqueueing(GENERATION_QUEUE, GENERATE_FUNCTION, by_id, _OPTIONS).put_to(on.connection)
    return [GenerationHandle(job_id, on.connection) for job_id in by_id]
