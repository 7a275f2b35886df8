"""What a worker counts of its work, for Prometheus: kept by prometheus_client, in its multiprocess mode.

Names and units are vLLM's and TEI's where they have such a thing, after `impetus_worker_`; without that word they are a
gateway's, of what it was asked. Each process writes into files of its own in the folder that the library's
`PROMETHEUS_MULTIPROC_DIR` names, and the supervisor sums them up for whoever scrapes (`server.py`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from impetus_backends.protocol import Embedded, EmbeddingWork, Generated
from impetus_producer.contract import BULK_QUEUES

from ..leases.outcomes import Failed, Finished, Outcome, Returned, Stopped
from .observer import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from impetus_backends.protocol import Event, Work

    from ..leases.claims import ClaimedJob

_LOOK_S = 1.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RESULT = {Finished: "finished", Failed: "failed", Stopped: "stopped", Returned: "returned"}


class Metrics(Observer):
    def __init__(self, role: str) -> None:
        self._role = role
        self._started: dict[str, float] = {}
        """When the open runs were claimed, by the ids of their jobs."""
        self._look_at = 0.0

    def took(self, jobs: Iterable[ClaimedJob], now: float) -> None:
        self._started.update((job.id, now) for job in jobs)

    def ended(self, outcome: Outcome, now: float) -> None:
        job, kept = outcome.job, _instruments()
        lane = "bulk" if job.queue in BULK_QUEUES else "interactive"
        kept.requests.labels(self._role, lane, _RESULT[type(outcome)]).inc()
        since = self._started.pop(job.id, None)
        if since is not None and isinstance(outcome, Finished):
            kept.latency.labels(self._role).observe(now - since)

    def admitted(self, work: Work) -> None:
        if isinstance(work, EmbeddingWork):
            kept, lengths = _instruments(), [len(row) for row in work.rows]
            kept.batch_texts.observe(len(lengths))
            kept.prompt_tokens.labels(self._role).inc(sum(lengths))
            kept.padding_tokens.inc(len(lengths) * max(lengths) - sum(lengths))

    def heard(self, event: Event) -> None:
        if isinstance(event, Embedded):
            kept = _instruments()
            kept.device_seconds.labels(self._role).inc(event.device_s)
            kept.energy_joules.labels(self._role).inc(event.energy_j or 0.0)
        elif isinstance(event, Generated):
            kept = _instruments()
            kept.prompt_tokens.labels(self._role).inc(event.prompt_tokens)
            kept.generation_tokens.inc(event.completion_tokens)
            kept.energy_joules.labels(self._role).inc(event.energy_j or 0.0)
            kept.prefix_queries.inc(event.prompt_tokens)
            kept.prefix_hits.inc(event.cached_tokens)
            kept.first_token.observe(event.first_token_s)
            if event.completion_tokens > 1:
                kept.each_token.observe((event.total_s - event.first_token_s) / (event.completion_tokens - 1))

    def lost_lease(self, job: ClaimedJob) -> None:
        self._started.pop(job.id, None)
        _instruments().lost_leases.labels(self._role).inc()

    def engine_died(self) -> None:
        _instruments().engine_deaths.labels(self._role).inc()

    def look(self, now: float, begun: Callable[[], Collection[str]], held: int) -> None:
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        kept, running = _instruments(), len(begun())
        kept.running.labels(self._role).set(running)
        kept.waiting.labels(self._role).set(max(0, held - running))


class _Instruments:
    """Made once a process, as the library wants it."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def name(rest: str) -> str:
            return f"impetus_worker_{rest}"

        self.requests: Any = Counter(name("requests"), "Runs that ended, by how.", ["role", "lane", "result"])
        self.latency: Any = Histogram(
            name("request_latency_seconds"), "From the claim to the end of runs that finished.", ["role"],
            buckets=_SECONDS,
        )  # fmt: skip
        self.running: Any = Gauge(
            name("num_requests_running"), "Jobs that the engine has begun.", ["role"], multiprocess_mode="livesum"
        )
        self.waiting: Any = Gauge(
            name("num_requests_waiting"), "Jobs claimed that it has not begun; what waits in Redis is not counted.",
            ["role"], multiprocess_mode="livesum",
        )  # fmt: skip
        self.prompt_tokens: Any = Counter(name("prompt_tokens"), "Tokens read, padding aside.", ["role"])
        self.generation_tokens: Any = Counter(name("generation_tokens"), "Tokens made.")
        self.padding_tokens: Any = Counter(name("padding_tokens"), "Tokens of embedding batches that are padding.")
        self.batch_texts: Any = Histogram(name("batch_texts"), "Texts of an embedding batch.", buckets=_TEXTS)
        self.device_seconds: Any = Counter(name("device_seconds"), "How long the device was at batches.", ["role"])
        self.energy_joules: Any = Counter(
            name("energy_joules"),
            "What the whole chip used for batches and generations; 0 where nothing measures it.",
            ["role"],
        )
        self.first_token: Any = Histogram(
            name("time_to_first_token_seconds"), "From the engine's admission on.", buckets=_SECONDS
        )
        self.each_token: Any = Histogram(
            name("time_per_output_token_seconds"), "Of a generation, its first token aside.",
            buckets=(0.001, 0.0025, *_SECONDS[:9]),
        )  # fmt: skip
        self.prefix_queries: Any = Counter(name("prefix_cache_queries"), "Prompt tokens that were looked up.")
        self.prefix_hits: Any = Counter(name("prefix_cache_hits"), "Those of them that were there.")
        self.lost_leases: Any = Counter(name("lost_leases"), "Runs that turned out to be another's.", ["role"])
        self.engine_deaths: Any = Counter(name("engine_deaths"), "Engines that ended by themselves.", ["role"])


@cache
def _instruments() -> _Instruments:
    return _Instruments()
