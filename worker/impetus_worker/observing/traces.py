"""A span for each run of a job whose enqueuer is traced: from its claim to its end, under the enqueuer's own span.

The parent is the job's `meta["traceparent"]` (W3C Trace Context), which `Producer` and the gateway write. A job without
one, or one that is not sampled, has no span. Attributes are OpenTelemetry's for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/). Where spans go is said by OpenTelemetry's own variables, as
`OTEL_EXPORTER_OTLP_ENDPOINT`. They are sent by a thread of the library's, and lost where nobody takes them.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from impetus_producer.errors import MissingExtraError

from ..leases.outcomes import Failed, Finished, Returned
from .observer import Observer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Outcome

_SAMPLED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]")
_MAX_META_BYTES = 4096
_MAX_RESULT_BYTES = 1_000_000
_OPERATION = {"embedding": "embeddings", "generation": "chat", "rerank": "rerank"}
_FAREWELL_MS = 2000


class Traces(Observer):
    """`worker`: its name, the service's instance."""

    def __init__(self, role: str, worker: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise MissingExtraError("OTEL_EXPORTER_OTLP_ENDPOINT", "otel") from None
        self._operation = _OPERATION[role]
        self._spans: dict[str, Any] = {}
        """Of the open runs, by the ids of their jobs."""
        own = {"service.name": "impetus-worker", "service.instance.id": worker}
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("impetus_worker")

    def took(self, jobs: Iterable[ClaimedJob], now: float) -> None:
        for job in jobs:
            if (parent := traceparent(job)) is not None:
                self._spans[job.id] = self._begin(job, parent)

    def _begin(self, job: ClaimedJob, parent: str) -> Any:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        return self._tracer.start_span(
            self._operation,
            context=TraceContextTextMapPropagator().extract({"traceparent": parent}),
            kind=SpanKind.CONSUMER,
            start_time=time.time_ns(),
            attributes={
                "gen_ai.operation.name": self._operation,
                "messaging.destination.name": job.queue,
                "messaging.message.id": job.id,
            },
        )

    def ended(self, outcome: Outcome, now: float) -> None:
        span = self._spans.pop(outcome.job.id, None)
        if span is None:
            return
        if isinstance(outcome, Finished) and len(outcome.result) <= _MAX_RESULT_BYTES:
            span.set_attributes(_of_result(outcome.result))
        elif isinstance(outcome, Failed):
            from opentelemetry.trace import StatusCode

            span.set_attribute("error.type", type(outcome.error).__name__)
            span.set_status(StatusCode.ERROR, str(outcome.error))
        elif isinstance(outcome, Returned):
            span.add_event("back to its queue")
        span.end()

    def lost_lease(self, job: ClaimedJob) -> None:
        if (span := self._spans.pop(job.id, None)) is not None:
            span.add_event("another run counts")
            span.end()

    def close(self) -> None:
        self._provider.force_flush(_FAREWELL_MS)
        self._provider.shutdown()


def traceparent(job: ClaimedJob) -> str | None:
    """The span under which the job was enqueued, where it is well-formed and sampled."""
    meta = job.fields.get(b"meta", b"")
    if b"traceparent" not in meta or len(meta) > _MAX_META_BYTES:
        return None
    try:
        said = json.loads(meta)
    except (ValueError, RecursionError):
        return None
    parent = said.get("traceparent") if isinstance(said, dict) else None
    return parent if isinstance(parent, str) and _SAMPLED.fullmatch(parent) else None


def _of_result(result: bytes) -> dict[str, Any]:
    said = json.loads(result)
    usage = said["usage"]
    found = {"gen_ai.response.model": said["model"], "gen_ai.usage.input_tokens": usage["prompt_tokens"]}
    if "completion_tokens" in usage:
        found |= {
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
            "gen_ai.response.finish_reasons": [said["finish_reason"]],
        }
    return found
