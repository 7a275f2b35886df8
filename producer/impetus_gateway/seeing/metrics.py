"""What Prometheus reads, in the names and units of vLLM's and TEI's metrics where they have them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from impetus_producer import contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_producer.contract import EmbeddingResult, GenerationResult, RerankResult
    from impetus_producer.watching.fleet import Fleet

    from ..entry.limits import Limits
    from .watch import Watch

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)


class Metrics:
    """Of one gateway."""

    def __init__(self, watch: Watch, limits: Limits) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "impetus_gateway_requests", "Requests answered", ["endpoint", "status"], registry=registry
        )
        self._seconds = Histogram(
            "impetus_e2e_request_latency_seconds", "From a request's first byte to its answer's last", ["endpoint"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "impetus_time_to_first_token_seconds", "From a request to its first token, of streams", ["model"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._per_token = Histogram(
            "impetus_time_per_output_token_seconds", "Between tokens, of streams, on average", ["model"],
            buckets=_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self._prompt_tokens = Counter("impetus_prompt_tokens", "Tokens read", ["model"], registry=registry)
        self._generation_tokens = Counter("impetus_generation_tokens", "Tokens made", ["model"], registry=registry)
        self._cached_tokens = Counter(
            "impetus_prefix_cache_hits",
            "Tokens of prompts that were not read again",
            ["model"],
            registry=registry,
        )
        self._texts = Counter("impetus_embedded_texts", "Texts embedded", ["model"], registry=registry)
        self._hung_up = Counter("impetus_gateway_hang_ups", "Clients that left before their answer", registry=registry)
        Gauge("impetus_gateway_requests_running", "Requests being answered", registry=registry).set_function(
            lambda: limits.running
        )
        self._registry.register(_Seen(watch))

        self.texts = self.tokens = 0
        """Embedded and generated through this gateway since it started."""

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def hung_up(self) -> None:
        self._hung_up.inc()

    def embedded(self, result: EmbeddingResult) -> None:
        self.texts += result.embeddings.texts
        self._texts.labels(result.model).inc(result.embeddings.texts)
        self._prompt_tokens.labels(result.model).inc(result.usage.prompt_tokens)

    def reranked(self, result: RerankResult) -> None:
        self._prompt_tokens.labels(result.model).inc(result.usage.prompt_tokens)

    def generated(self, result: GenerationResult) -> None:
        self._prompt_tokens.labels(result.model).inc(result.usage.prompt_tokens)
        self.tokens += result.usage.completion_tokens
        self._generation_tokens.labels(result.model).inc(result.usage.completion_tokens)
        self._cached_tokens.labels(result.model).inc(result.usage.cached_tokens)

    def streamed(self, result: GenerationResult, first_token_s: float, total_s: float) -> None:
        self._first_token.labels(result.model).observe(first_token_s)
        if result.usage.completion_tokens > 1:
            self._per_token.labels(result.model).observe(
                max(0.0, total_s - first_token_s) / (result.usage.completion_tokens - 1)
            )


class _Seen(Collector):
    """What the watch saw last."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[GaugeMetricFamily]:
        fleet = self._watch.fleet
        yield GaugeMetricFamily("impetus_redis_up", "Whether the queue's server answers", float(fleet is not None))
        if fleet is not None:
            yield from _queues(fleet)
            yield from _workers(fleet)


def _queues(fleet: Fleet) -> Iterator[GaugeMetricFamily]:
    waiting = GaugeMetricFamily("impetus_num_requests_waiting", "Jobs that wait", labels=["queue"])
    running = GaugeMetricFamily("impetus_num_requests_running", "Jobs that run", labels=["queue"])
    failed = GaugeMetricFamily("impetus_failed_jobs", "Jobs that failed and are kept", labels=["queue"])
    oldest = GaugeMetricFamily(
        "impetus_queue_oldest_age_seconds", "How long the first job that waits has waited", labels=["queue"]
    )
    for queue in fleet.ours():
        for family, value in ((waiting, queue.waiting), (running, queue.running), (failed, queue.failed)):
            if value is not None:
                family.add_metric([queue.name], value)
        oldest.add_metric([queue.name], queue.oldest_s or 0.0)
    yield from (waiting, running, failed, oldest)


def _workers(fleet: Fleet) -> Iterator[GaugeMetricFamily]:
    serving = GaugeMetricFamily("impetus_workers_serving", "Workers that take jobs of a role", labels=["role"])
    deaths = GaugeMetricFamily(
        "impetus_engine_deaths", "How often the engines of the workers that live have died", labels=["role"]
    )
    for role in contract.ROLE_QUEUES:
        alive = [each for each in fleet.workers if each.alive and each.role == role]
        serving.add_metric([role], sum(each.serving and not each.standing_by for each in alive))
        deaths.add_metric([role], sum(each.engine_deaths for each in alive))
    yield from (serving, deaths)


class Stopwatch:
    """Seconds since a request came, and when it had its first token."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.first_token_s: float | None = None

    def token(self) -> None:
        if self.first_token_s is None:
            self.first_token_s = self.seconds()

    def seconds(self) -> float:
        return time.monotonic() - self._started
