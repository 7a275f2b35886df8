"""Runs over many documents as `impetus status` shows them, and a bar for code."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_producer import Document, MissingExtraError, Producer, embed_documents
from impetus_producer.cli.main import cli
from impetus_producer.cli.runs import progress
from impetus_producer.watching.runs import Announcement, RunState, read_runs

from ..servers.valkey import Valkey
from ..stock_worker import StockWorker, honest_work, working

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


def status(url: str, *options: str) -> str:
    result = CliRunner().invoke(cli, ["status", "--redis-url", url, *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_is_shown_while_it_goes_on_and_not_after(
    folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0)
    (folder / "in.txt").write_text("".join(f"text {number}\n" for number in range(1000)))
    seen: list[RunState] = []

    def work(function: str, request: dict[str, Any]) -> Any:
        seen.extend(read_runs(producer.connection))
        return honest_work(function, request)

    producer = Producer(redis_url)
    with working(redis_url, work):
        options = ["--redis-url", redis_url, "--progress", "none", "--max-backlog-jobs", "2"]
        assert CliRunner().invoke(cli, ["embed", "in.txt", "-o", "out.jsonl", *options]).exit_code == 0
    assert (seen[-1].label, seen[-1].output, seen[-1].total, seen[-1].pid) == (
        "Embedding",
        "out.jsonl",
        1000,
        os.getpid(),
    )
    assert read_runs(producer.connection) == ()


def test_status_shows_runs_to_people_and_programs(producer: Producer, redis_url: str) -> None:
    announcement = Announcement(producer, "Embedding", "docs.parquet\x1b[2J")
    announcement.tell(1500, 20_000, 12.34, 1500.0)
    shown = status(redis_url)
    assert "docs.parquet" in shown
    assert "\x1b" not in shown
    assert "1,500 of 20,000" in shown
    assert "12.3" in shown
    assert "25 min" in shown
    (run,) = json.loads(status(redis_url, "--json"))["runs"]
    assert (run["documents"], run["total"], run["docs_per_s"]) == (1500, 20_000, 12.34)
    announcement.close()
    assert "docs.parquet" not in status(redis_url)


def test_what_others_wrote_in_a_runs_place_is_passed_over(producer: Producer, redis_url: str) -> None:
    connection = producer.connection
    for number, said in enumerate(
        (b"", b"no json", b"[]", b"[" * 4000, b'{"label": "x"}', json.dumps({"label": "x" * 5000}).encode())
    ):
        connection.set(f"impetus:run:{number}", said, ex=60)
        connection.sadd("impetus:runs", number)
    huge = {
        "label": "L",
        "output": {"a": 1},
        "machine": None,
        "pid": 1e300,
        "documents": -1,
        "total": True,
        "left_s": "x",
    }
    connection.set("impetus:run:huge", json.dumps(huge), ex=60)
    connection.set("impetus:run:endless", json.dumps(huge))
    connection.hset("impetus:run:hash", "a", "b")
    connection.sadd("impetus:runs", "huge", "endless", "hash", "gone")
    (run,) = read_runs(connection)
    assert (run.output, run.pid, run.documents, run.total, run.left_s) == ("{'a': 1}", 0, 0, None, None)
    assert "Run" in status(redis_url)
    connection.delete("impetus:runs")
    connection.set("impetus:runs", "a string")
    assert read_runs(connection) == ()
    Announcement(producer, "Embedding", "out").tell(1, None, None, None)


def test_who_may_not_say_or_see_it_goes_on_without(folder: Path) -> None:
    server = Valkey(folder)
    server.ask("ACL", "SETUSER", "old", "on", ">p", "~rq:*", "+@all")
    producer = Producer(server.url.replace("redis://", "redis://old:p@"))
    announcement = Announcement(producer, "Embedding", "out")
    announcement.tell(1, None, None, None)
    assert read_runs(producer.connection) == ()
    announcement.close()
    server.kill()
    announcement = Announcement(producer, "Embedding", "out")
    announcement.tell(1, None, None, None)
    announcement.close()


def test_code_has_a_bar_where_it_asks_for_one(
    producer: Producer, worker: StockWorker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(str(number), f"text {number}") for number in range(20)]
    assert len(list(embed_documents(producer, documents, show_progress=True))) == 20
    assert "20/20" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingExtraError, match="'progress' extra"):
        embed_documents(producer, documents, show_progress=True)
