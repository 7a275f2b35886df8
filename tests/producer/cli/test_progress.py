"""How far a run is, and that its pace is right, also when it goes on with another's work."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_producer.cli.main import cli
from impetus_producer.cli.runs import progress
from impetus_producer.cli.runs.progress import Pace, spoken
from impetus_producer.cli.settings import server
from impetus_producer.contract import WORKER_RECORD_KEY, WorkerRecord

from ..stock_worker import StockWorker, honest_work, working

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis


def test_the_pace_is_that_of_what_is_computed_and_not_of_what_was_there() -> None:
    now = 0.0
    pace = Pace(11_000, lambda: now)
    # 10,000 that an earlier run made are passed over in two seconds.
    pace.done, now = 10_000, 2.0
    pace.note(computing=False)
    assert (pace.rate, pace.left_s) == (None, None)
    assert str(pace) == "10,000 of 11,000 documents"
    for _ in range(50):
        pace.note(computing=True)
        now += 1
        pace.done += 10
    assert pace.rate == pytest.approx(10)
    assert pace.left_s == pytest.approx(50)
    assert str(pace) == "10,500 of 11,000 documents, 10.0 docs/s, about 50 s left"
    # What it does now counts, and not what it did at first.
    for _ in range(60):
        now += 1
        pace.done += 1
        pace.note(computing=True)
    assert pace.rate == pytest.approx(1, rel=0.01)


def test_a_guess_that_was_too_low_leaves_nothing_below_zero() -> None:
    now = 0.0
    pace = Pace(10, lambda: now)
    pace.note(computing=True)
    pace.done, now = 20, 1.0
    pace.note(computing=True)
    assert pace.left_s == 0
    assert Pace(None).as_dict() == {"documents": 0, "total": None, "docs_per_s": None, "left_s": None}


def test_times_are_spoken_as_roughly_as_they_are_known() -> None:
    spoken_of = {0.4: "0 s", 89: "89 s", 200: "3 min", 5400: "1 h 30 min", 9000: "2 h 30 min"}
    assert {seconds: spoken(seconds) for seconds in spoken_of} == spoken_of


@pytest.mark.system
@pytest.mark.parametrize(("kind", "says"), [("auto", True), ("lines", True), ("json", True), ("none", False)])
def test_lines_come_where_there_is_no_terminal(
    folder: Path, redis_url: str, worker: StockWorker, monkeypatch: pytest.MonkeyPatch, kind: str, says: bool
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    (folder / "in.txt").write_text("".join(f"{number}\n" for number in range(100)))
    arguments = ["embed", "in.txt", "-o", "out.jsonl", "--progress", kind]
    result = CliRunner().invoke(cli, arguments, env={"IMPETUS_REDIS_URL": redis_url})
    assert result.exit_code == 0
    _, *lines, _ = result.stderr.splitlines()
    assert bool(lines) == says
    if kind == "json":
        assert json.loads(lines[-1])["documents"] == 100
        assert json.loads(lines[-1])["total"] == 100
    elif says:
        assert lines[-1].startswith("Embedding: 100 of 100 documents, ")


@pytest.mark.system
def test_a_worker_that_loads_its_model_is_told(
    folder: Path, redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LOOK_EVERY_S", 0.0)
    told, say = threading.Event(), server._Notice._say

    def note(notice: server._Notice, sentence: str) -> None:
        say(notice, sentence)
        told.set()

    def once_told(function: str, request: dict[str, Any]) -> Any:
        assert told.wait(60)
        return honest_work(function, request)

    monkeypatch.setattr(server._Notice, "_say", note)
    (folder / "in.txt").write_text("one\n")
    record = WorkerRecord(name="mac", role="embedding", model="m", backend="mlx", device="gpu", serving=False)
    connection.sadd("rq:workers", "rq:worker:mac")
    connection.hset("rq:worker:mac", mapping={"queues": "embedding,embedding-bulk", "state": "idle"})
    connection.set(f"{WORKER_RECORD_KEY}mac", record.model_dump_json(), ex=100)
    with working(redis_url, once_told):
        result = CliRunner().invoke(cli, ["embed", "in.txt", "-o", "out.jsonl"], env={"IMPETUS_REDIS_URL": redis_url})
    assert result.exit_code == 0
    assert "The worker mac is loading its model; waiting." in result.stderr
