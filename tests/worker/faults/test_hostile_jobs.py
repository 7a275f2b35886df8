"""Jobs made to do harm, among ordinary ones, at a real worker: each ends alone, and no process of the worker ends."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .site import Site

pytestmark = pytest.mark.system
EMBED = "impetus_worker.jobs.embed"


def deflated(head: bytes, block: bytes, times: int, tail: bytes = b"") -> bytes:
    """A payload that inflates to this, which is never in one piece here."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(head), *(packer.compress(block) for _ in range(times)), packer.compress(tail)]
    return b"".join(parts) + packer.flush()


def call(request: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps([EMBED, None, [request], {}]).encode(), 1)


MEGABYTE = 1_000_000
OPEN = f'["{EMBED}", null, ['.encode()


def those_that_fail() -> dict[str, dict[str, bytes]]:
    """Fields of jobs by what is wrong with them. Making them takes seconds."""
    return {
        "a bomb of spaces": {"data": deflated(b"[", b" " * MEGABYTE, 200)},
        "a bomb of spaces that may be tried again": {
            "data": deflated(b"[", b" " * MEGABYTE, 200),
            "retries_left": b"1",
        },
        "62 MB of empty lists": {"data": deflated(OPEN, b"[]," * 333_333, 62, b"[]], {}]")},
        "62 MB of empty lists as texts": {"data": deflated(OPEN + b'{"input":[', b"[]," * 333_333, 62, b"[]]}], {}]")},
        "brackets that are never closed": {"data": deflated(b"", b"[" * MEGABYTE, 60)},
        "a million unknown keys": {"data": call({"input": "x"} | {f"key {number}": 1 for number in range(1_000_000)})},
        "many unknown keys": {"data": call({"input": "x"} | {f"key {number}": 1 for number in range(20_000)})},
        "numbers for texts": {"data": call({"input": list(range(90_000))})},
        "more texts than a job carries": {"data": call({"input": ["x"] * 99_000})},
        "one text past the limit": {"data": call({"input": "x" * 10_000_001})},
        "half a surrogate": {"data": call({"input": "\ud83e"})},
        "a name with lines and escapes": {"data": call({"input": "x", "a\n2026-01-01 INFO forged \x1b[31m": 1})},
        "a number of a thousand digits": {"data": call({"input": "x", "dimensions": int("9" * 1000)})},
        "NaN": {"data": zlib.compress(OPEN + b'{"input": "x", "dimensions": NaN}], {}]')},
        "a pickle": {"data": zlib.compress(b"\x80\x04\x95")},
        "no bytes at all": {"data": b""},
        "two hundred fields": {f"field {number}": b"" for number in range(200)},
        "a field of 100 MB": {"another": b"x" * 100 * MEGABYTE},
        "words of a chat": {"data": call({"messages": [{"role": "user", "content": "x"}]})},
    }


def those_that_finish() -> dict[str, dict[str, bytes]]:
    return {
        "digits past what int() takes": {"impetus_deaths": b"9" * 5000},
        "a producer marks its job suspect": {"impetus_suspect": b"1"},
        "time to live in another notation": {"ttl": b"1e3"},
        "time to live of 30 digits": {"ttl": b"9" * 30},
        "result_ttl in hex": {"result_ttl": b"0x10"},
        "timeout that is no number": {"timeout": b"soon"},
        "long meta that RQ would read": {"meta": b"[" + b"[]," * 3_000_000 + b"[]]", "retries_left": b"1"},
        "deep meta that RQ would read": {"meta": b"[" * 90_000, "result_ttl": b"60"},
        "another worker's run": {"worker_name": b"x", "impetus_execution": b"E"},
        "one word of 10 MB": {"data": call({"input": "x" * 10_000_000})},
        "six texts of 10 MB": {"data": call({"input": ["words " * 1_666_000] * 6})},
        "10 MB of spaces": {"data": call({"input": " " * 10_000_000})},
        "as many texts as a job may carry": {"data": call({"input": ["text"] * 2048})},
    }


def test_hostile_jobs_end_alone(site: Site) -> None:
    fails, finishes = those_that_fail(), those_that_finish()
    workers = site.start()
    queue = Queue("embedding", connection=site.connection, serializer=JSONSerializer)
    site.connection.hset("rq:worker:x:executions", "a", "b")
    pids = set(workers.worker_pids())
    good: list[str] = []
    ended: dict[str, str] = {}
    for what, fields in (fails | finishes).items():
        good += [queue.enqueue(EMBED, {"input": f"before {what}"}).id for _ in range(3)]
        with site.connection.pipeline() as pipeline:
            job = queue.enqueue(EMBED, {"input": "hostile"}, at_front=False, pipeline=pipeline)
            pipeline.hset(f"rq:job:{job.id}", mapping=fields)  # type: ignore[arg-type]  # bytes are as good
            pipeline.execute()
        ended[job.id] = what
        good += [queue.enqueue(EMBED, {"input": f"after {what}"}).id for _ in range(3)]
    eventually(lambda: all(site.status(each) in ("finished", "failed") for each in [*good, *ended]), 120)
    assert {site.status(each) for each in good} == {"finished"}
    ends = {what: site.status(job_id) for job_id, what in ended.items()}
    assert ends == dict.fromkeys(fails, "failed") | dict.fromkeys(finishes, "finished")
    assert set(workers.worker_pids()) == pids
    log = site.said()
    assert "Traceback" not in log
    assert "died" not in log
    assert "\x1b" not in log
    assert not [line for line in log.splitlines() if line.startswith("2026-01-01 INFO forged")]


def test_long_jobs_of_both_lanes_are_read_and_give_what_short_ones_give(site: Site) -> None:
    site.start()
    texts = [f"text {number} " * 40 for number in range(800)]
    handles = [site.producer.embed(each, bulk=True) for each in (texts, ["short"], texts[::-1])]
    urgent = site.producer.embed(texts)
    vectors = [np.asarray(handle.result(60).vectors) for handle in (*handles, urgent)]
    np.testing.assert_array_equal(vectors[0], vectors[2][::-1])
    np.testing.assert_array_equal(vectors[0], vectors[3])
    site.check([handle.job_id for handle in [*handles, urgent]])
