"""The whole way with the real model: producer, Redis, worker, engine process, and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from impetus_producer import Producer
from tests import recordings
from tests.recordings import recorded_texts

if TYPE_CHECKING:
    from redis import Redis

    from ..conftest import Fleet

pytestmark = pytest.mark.system
EMBED = "impetus_worker.jobs.embed"
REAL = ("--embedding-backend", "cpu")
GROWTH_LIMIT_MB = 40


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def recorded() -> tuple[list[str], np.ndarray]:
    """Texts, and the vectors that sentence-transformers gives them with the same model."""
    return recorded_texts(), recordings.recorded("reference")["minilm/plain"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_vectors_through_the_queue_are_those_of_sentence_transformers_and_memory_stays_flat(fleet: Fleet) -> None:
    fleet.start(*REAL)
    producer = Producer(connection=fleet.connection)
    texts, expected = recorded()
    together = np.asarray(producer.embed(texts).result(timeout_s=60).vectors)
    # Each beside strangers of other lengths, in jobs of their own and in both lanes.
    apart = [producer.embed(text, bulk=bool(number % 2)) for number, text in enumerate(texts)]
    alone = np.concatenate([np.asarray(handle.result(timeout_s=60).vectors) for handle in apart])
    assert np.sum(together * expected, axis=1).min() >= 0.9999
    assert np.sum(alone * expected, axis=1).min() >= 0.9999
    assert np.abs(together - alone).max() < 1e-5

    engine = fleet.engine_pid()
    before = resident_mb(engine)
    words = ["queue", "batch", "token", "vector", "worker", "engine", "redis", "signal"]
    many = (" ".join(words[: 1 + number % 8]) for number in range(10_000))
    for handle in producer.embed_many(many, texts_per_job=100):
        assert len(handle.result(timeout_s=60).vectors) == 100
        handle.delete()
    assert fleet.engine_pid() == engine
    assert resident_mb(engine) - before < GROWTH_LIMIT_MB


def test_a_stock_rq_worker_can_run_the_same_job_and_gives_the_same_answer(
    fleet: Fleet, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.start("--burst", wait=False)
    queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
    ours = queue.enqueue(EMBED, {"input": ["a b c", "d"]})
    fleet.await_status(ours, "finished")
    fleet.running[0].process.wait(timeout=30)
    monkeypatch.setenv("IMPETUS_EMBEDDING_BACKEND", "simulated")
    theirs, broken = queue.enqueue(EMBED, {"input": ["a b c", "d"]}), queue.enqueue(EMBED, {"input": []})
    SimpleWorker([queue], connection=connection, serializer=JSONSerializer).work(burst=True)
    value, expected = theirs.return_value(), ours.return_value()
    assert value is not None
    assert expected is not None
    assert {**value, "provenance": None} == {**expected, "provenance": None}
    assert fleet.status(broken) == "failed"
    assert fleet.reason(broken).endswith("input: the list is empty: send at least one text")


def test_embed_alone_brings_a_server_and_a_worker_and_leaves_neither(tmp_path: Path) -> None:
    texts, expected = recorded()
    source, output = tmp_path / "docs.jsonl", tmp_path / "docs.jsonl.out.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"d{number}", "text": text}) + "\n" for number, text in enumerate(texts))
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
    environment |= {"IMPETUS_STATE_DIR": str(tmp_path / "state"), "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "impetus_producer", "embed", source, "--output", output],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert run.stdout == ""
    assert "0 failed" in run.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"d{number}" for number in range(len(texts))]
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    assert np.sum(vectors * expected, axis=1).min() >= 0.9999
    assert _processes_of(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, output.name]


def _processes_of(folder: Path) -> list[str]:
    """The processes that were started with this folder in their environment or arguments."""
    shown = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if f"TMPDIR={folder}" in line]
