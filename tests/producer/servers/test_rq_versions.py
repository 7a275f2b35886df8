"""Services may have another RQ installed beside the producer, or none."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from impetus_producer import EmbeddingHandle, JobCancelledError, Producer
from tests.test_imports import imported, sources

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

_READ_AND_ENQUEUE = """
import json, sys
from redis import Redis
import rq
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
url, job_id = sys.argv[1:]
connection = Redis.from_url(url)
queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
job = Job.fetch(job_id, connection, serializer=JSONSerializer)
own = queue.enqueue("impetus_worker.jobs.embed", {"input": "from RQ"}, job_id="from-rq", result_ttl=60)
print(json.dumps({
    "version": rq.__version__, "function": job.func_name, "arguments": job.args, "status": job.get_status(),
    "timeout": job.timeout, "origin": job.origin, "queued": queue.job_ids,
}))
"""
_WITHOUT_RQ = """
import sys
sys.modules["rq"] = None
from impetus_producer import Producer
producer = Producer(sys.argv[1])
handle = producer.embed("a")
assert handle.cancel()
print(handle.job_id)
"""


@pytest.fixture(scope="session")
def folder_with_rq_1_16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rq-1.16")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder), "rq>=1.16,<1.17"], capture_output=True, text=True, check=False, timeout=90
    )
    if done.returncode:
        pytest.skip(f"pip cannot download rq 1.16 here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def run(program: str, *arguments: str, first_on_the_path: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(first_on_the_path or '')]!r}\n{program}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["1.16", "3.0"])
def test_jobs_go_both_ways_between_the_producer_and_this_version_of_rq(
    version: str, producer: Producer, redis_url: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("folder_with_rq_1_16") if version == "1.16" else None
    handle = producer.embed("ü")
    seen: dict[str, Any] = json.loads(run(_READ_AND_ENQUEUE, redis_url, handle.job_id, first_on_the_path=folder))
    assert seen.pop("version").startswith(version)
    assert seen == {
        "function": "impetus_worker.jobs.embed",
        "arguments": [{"input": "ü"}],
        "status": "queued",
        "timeout": 600,
        "origin": "embedding",
        "queued": [handle.job_id, "from-rq"],
    }
    theirs = producer.handle("from-rq")
    assert isinstance(theirs, EmbeddingHandle)
    assert theirs.status() == "queued"
    assert theirs.cancel() is True
    with pytest.raises(JobCancelledError):
        theirs.result(5)


def test_the_producer_imports_no_rq_anywhere() -> None:
    for path in sources("impetus_producer"):
        assert "rq" not in imported(ast.walk(ast.parse(path.read_text()))), path


def test_the_producer_needs_no_rq(redis_url: str, connection: Redis) -> None:
    job_id = run(_WITHOUT_RQ, redis_url).strip()
    assert connection.hget(f"rq:job:{job_id}", "status") == b"canceled"
