"""The functions that jobs name. Our workers run their batches instead; any other RQ worker can call these.

Called by stock `rq.SimpleWorker` they load the model in its process, once, and serve one job at a time, at whatever
speed that gives. Model and backend come from `IMPETUS_EMBEDDING_MODEL`, `IMPETUS_EMBEDDING_BACKEND` and their likes for
generation and rerankers, as for `impetus-worker run`.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from impetus_backends.protocol import Rejected
from impetus_producer.contract import ROLE_FUNCTIONS, ROLE_QUEUES

from .errors import InferenceError
from .leases.claims import ClaimedJob
from .leases.outcomes import Failed, Finished
from .roles import engine_config, make_batcher
from .settings import Role, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.protocol import Engine

    from .batches.batcher import Batcher
    from .leases.outcomes import News


def embed(request: dict[str, Any]) -> dict[str, Any]:
    """An `EmbeddingRequest` as a plain object to an `EmbeddingResult` as one."""
    return _run("embedding", request)


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """A `GenerationRequest` as a plain object to a `GenerationResult` as one."""
    return _run("generation", request)


def rerank(request: dict[str, Any]) -> dict[str, Any]:
    """A `RerankRequest` as a plain object to a `RerankResult` as one."""
    return _run("rerank", request)


def _run(role: Role, request: Any) -> dict[str, Any]:
    """The worker's own path with a batch of one, so that both give the same answer to the same request."""
    engine, batcher = _engine(role)
    data = json.dumps([ROLE_FUNCTIONS[role], None, [request], {}]).encode()
    job = ClaimedJob("inline", "inline", ROLE_QUEUES[role][0], {b"data": data}, time.time())
    batcher.add([job])
    outcomes: list[Finished | Failed] = []
    while not outcomes:
        outcomes += _endings(batcher.read(time.monotonic()))
        while (work := batcher.next_work(time.monotonic())) is not None:
            engine.admit(work)
        for event in engine.step():
            outcomes += _endings(batcher.absorb(event, time.monotonic()))
            if isinstance(event, Rejected) and not event.permanent and not outcomes:
                # RQ's timeout is raised inside the engine, which takes it for an error of the device.
                for work_id in batcher.forget([job.id]):
                    engine.cancel(work_id)
                raise InferenceError(event.message)
    outcome = outcomes[0]
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome.whole()


def _endings(news: Sequence[News]) -> list[Finished | Failed]:
    return [each for each in news if isinstance(each, Finished | Failed)]


@cache
def _engine(role: Role) -> tuple[Engine, Batcher]:
    from impetus_backends.dispatcher import open_engine

    settings = WorkerSettings(
        redis_urls=(),
        role=role,
        name="inline",
        model=os.environ.get(f"IMPETUS_{role.upper()}_MODEL"),
        backend=os.environ.get(f"IMPETUS_{role.upper()}_BACKEND", "auto"),
        upstream=os.environ.get("IMPETUS_UPSTREAM"),
        max_wait_ms=0.0,
    )
    engine = open_engine(engine_config(settings))
    return engine, make_batcher(settings, engine.info)
