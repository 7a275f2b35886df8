"""Spans of jobs whose enqueuer is traced, as a collector gets them by OTLP."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from impetus_producer.contract import EMBED_FUNCTION, GENERATE_FUNCTION
from impetus_worker.leases.claims import ClaimedJob
from impetus_worker.observing.traces import traceparent
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..conftest import Fleet

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"


@dataclass
class Collector:
    url: str
    spans: list[Any] = field(default_factory=list)

    def of(self, job_id: str) -> dict[str, Any]:
        """The attributes of the job's span, as soon as it is there."""
        return eventually(lambda: next((each for each in map(attributes, self.spans) if each["job"] == job_id), {}))


def attributes(span: Any) -> dict[str, Any]:
    said = {each.key: each.value for each in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in said.items()} | {
        "job": said["messaging.message.id"].string_value,
        "trace": span.trace_id.hex(),
        "parent": span.parent_span_id.hex(),
        "status": span.status.message,
        "lasts": span.end_time_unix_nano - span.start_time_unix_nano,
    }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found.spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        yield found
        server.shutdown()
        thread.join()


@pytest.mark.system
def test_a_traced_callers_jobs_have_spans_under_its_own_and_others_have_none(
    fleet: Fleet, collector: Collector
) -> None:
    worker = fleet.start(roles="embedding,generation")
    meta = {"traceparent": SAMPLED}
    embedded = fleet.queue().enqueue(EMBED_FUNCTION, {"input": ["a text"]}, meta=meta)
    made = fleet.queue("generation").enqueue(GENERATE_FUNCTION, {"prompt": "hi", "max_tokens": 4}, meta=meta)
    bad = fleet.queue().enqueue(EMBED_FUNCTION, {"input": "x", "dimensions": -1}, meta=meta)
    untraced = fleet.queue().enqueue(EMBED_FUNCTION, {"input": ["a text"]})
    eventually(lambda: [fleet.status(job) for job in (embedded, made, untraced)] == ["finished"] * 3)
    eventually(lambda: fleet.status(bad) == "failed")
    assert worker.stop() == 0  # what it has not sent yet it sends now
    for job in (embedded, made, bad):
        said = collector.of(job.id)
        assert (said["trace"], said["parent"], said["messaging.destination.name"]) == (TRACE, SPAN, job.origin)
        assert said["lasts"] > 0
    assert collector.of(embedded.id)["gen_ai.operation.name"] == "embeddings"
    assert collector.of(embedded.id)["gen_ai.usage.input_tokens"] > 0
    assert collector.of(made.id)["gen_ai.usage.output_tokens"] == 4
    assert collector.of(bad.id)["error.type"] == "InvalidRequestError"
    assert "dimensions" in collector.of(bad.id)["status"]
    assert untraced.id not in {attributes(span)["job"] for span in collector.spans}


@pytest.mark.system
def test_a_collector_that_nobody_answers_for_delays_no_job_and_no_stop(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    worker = fleet.start()
    job = fleet.queue().enqueue(EMBED_FUNCTION, {"input": ["a text"]}, meta={"traceparent": SAMPLED})
    eventually(lambda: fleet.status(job) == "finished")
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (f'{{"traceparent": "{SAMPLED}"}}', SAMPLED),
        (f'{{"traceparent": "00-{TRACE}-{SPAN}-00"}}', None),
        (f'{{"traceparent": "00-{"0" * 32}-{SPAN}-01"}}', None),
        (f'{{"traceparent": "{SAMPLED}x"}}', None),
        ('{"traceparent": 7}', None),
        ('["traceparent"]', None),
        ('"traceparent', None),
        ('{"traceparent":' + "[" * 4000, None),
        (f'{{"traceparent": "{SAMPLED}", "more": "{"x" * 5000}"}}', None),
        ("{}", None),
    ],
)
def test_what_is_no_sampled_traceparent_is_passed_over(meta: str, expected: str | None) -> None:
    job = ClaimedJob(id="j", token="t", queue="embedding", fields={b"meta": meta.encode()}, claimed_at=0.0)
    assert traceparent(job) == expected
