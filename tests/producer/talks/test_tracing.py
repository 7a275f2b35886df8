"""A job carries the span under which it was enqueued."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

if TYPE_CHECKING:
    from redis import Redis

    from impetus_producer import Producer


def test_a_job_enqueued_under_a_span_names_it_and_another_has_no_meta(producer: Producer, connection: Redis) -> None:
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("mine") as span:
        traced = producer.embed("one", bulk=True)
    untraced = producer.embed("two", bulk=True)
    ours = span.get_span_context()
    expected = f"00-{format_trace_id(ours.trace_id)}-{format_span_id(ours.span_id)}-{ours.trace_flags:02x}"
    meta = connection.hget(f"rq:job:{traced.job_id}", "meta")
    assert json.loads(meta or b"{}") == {"traceparent": expected}
    assert not connection.hexists(f"rq:job:{untraced.job_id}", "meta")
