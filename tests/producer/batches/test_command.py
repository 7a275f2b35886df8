"""`impetus batch run`, as a process that is killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_producer.cli.main import cli
from tests.patience import eventually

from ..stock_worker import working
from .requests import answers, chat, completion, counted, embedding, jsonl, read
from .test_service import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from ..servers.valkey import Valkey

    MakeValkey = Callable[..., Valkey]

pytestmark = pytest.mark.system
COUNT = 300


def run(*arguments: str, url: str) -> Any:
    return CliRunner().invoke(cli, ["batch", "run", *arguments, "--redis-url", url])


def command(url: str, *options: str) -> list[str]:
    program = [sys.executable, "-m", "impetus_producer"]
    return [*program, "batch", "run", "in.jsonl", "-o", "out.jsonl", "--redis-url", url, *options]


@contextmanager
def begun(folder: Path, url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(url, *options), cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def texts(folder: Path) -> Path:
    (folder / "in.jsonl").write_bytes(jsonl(embedding(f"id {n}", f"text {n}") for n in range(COUNT)))
    return folder


def test_lines_for_all_endpoints_are_answered(folder: Path, redis_url: str) -> None:
    lines = [embedding("e"), chat("ü"), completion("p"), embedding("bad", "bad text")]
    (folder / "in.jsonl").write_bytes(jsonl(lines))
    with working(redis_url):
        result = run("in.jsonl", "-o", "out.jsonl", url=redis_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert set(answers(folder / "out.jsonl")) == {"e", "ü", "p"}
    (error,) = read(folder / "out.jsonl.errors.jsonl")
    assert error["response"]["body"]["error"]["message"] == "input: item 0 is bad"
    assert "3 answered in out.jsonl, 1 failed, listed in " in result.stderr
    # There is nothing left to do, and nobody is needed for that.
    again = run("in.jsonl", "-o", "out.jsonl", url="redis://127.0.0.1:1")
    assert again.exit_code == 1
    assert "Going on: 4 of 4 are done." in again.stderr


def test_a_run_that_is_killed_goes_on_and_asks_nothing_twice(texts: Path, redis_url: str, connection: Redis) -> None:
    held = Held("text 150")
    with working(redis_url, held):
        with begun(texts, redis_url, "--window", "32") as process:
            assert held.reached.wait(60)
            eventually(lambda: len(read(texts / "out.jsonl")) > 100)
            process.send_signal(signal.SIGKILL)
            process.wait()
        # As if it had been killed while it wrote.
        with (texts / "out.jsonl").open("ab") as file:
            file.write(b'{"id":"batch_req_0')
        held.go_on.set()
        result = run("in.jsonl", "-o", "out.jsonl", url=redis_url)
    assert result.exit_code == 0, result.stderr
    assert "Going on: " in result.stderr
    assert counted(texts / "out.jsonl") == {f"id {n}": 1 for n in range(COUNT)}
    assert set(held.asked.values()) == {1}
    assert sorted(answers(texts / "out.jsonl")) == sorted(f"id {n}" for n in range(COUNT))
    assert connection.keys("rq:job:*") == connection.keys("rq:results:*") == []


def test_a_server_that_is_killed_is_waited_for(texts: Path, valkey: MakeValkey) -> None:
    server = valkey("--appendonly", "yes", "--appendfsync", "always")
    held = Held("text 150")
    with begun(texts, server.url, "--window", "32") as process:
        with working(server.url, held):
            assert held.reached.wait(60)
            held.go_on.set()
            eventually(lambda: len(read(texts / "out.jsonl")) > 160)
        server.kill()
        assert process.stderr is not None
        assert any("Waiting up to" in line for line in process.stderr)
        server.start()
        with working(server.url, held):
            assert process.wait(60) == 0
    assert counted(texts / "out.jsonl") == {f"id {n}": 1 for n in range(COUNT)}


def test_ctrl_c_takes_what_waits_off_the_queue_and_keeps_what_is_done(
    texts: Path, redis_url: str, connection: Redis
) -> None:
    held = Held("text 50")
    with working(redis_url, held):
        with begun(texts, redis_url, "--window", "32") as process:
            assert held.reached.wait(60)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 130
            assert "Traceback" not in stderr
        assert connection.llen("rq:queue:embedding-bulk") == 0
        done = len(read(texts / "out.jsonl"))
        assert 0 < done <= 50
        held.go_on.set()
        result = run("in.jsonl", "-o", "out.jsonl", url=redis_url)
    assert result.exit_code == 0, result.stderr
    assert counted(texts / "out.jsonl") == {f"id {n}": 1 for n in range(COUNT)}
    assert set(held.asked.values()) == {1}


def test_ctrl_c_waits_for_no_server_that_is_gone(texts: Path, valkey: MakeValkey) -> None:
    server = valkey()
    with begun(texts, server.url) as process:
        eventually(lambda: server.ask("LLEN", "rq:queue:embedding-bulk"))
        server.kill()
        assert process.stderr is not None
        assert any("Waiting up to" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_two_runs_of_one_output_do_not_meet(texts: Path, redis_url: str, connection: Redis) -> None:
    with begun(texts, redis_url):
        eventually(lambda: connection.llen("rq:queue:embedding-bulk"))
        result = run("in.jsonl", "-o", "out.jsonl", url=redis_url)
    assert result.exit_code == 1
    assert "another process is writing" in result.stderr


def test_an_output_of_another_input_is_left_alone_unless_told(texts: Path, redis_url: str) -> None:
    with working(redis_url):
        assert run("in.jsonl", "-o", "out.jsonl", url=redis_url).exit_code == 0
        before = (texts / "out.jsonl").read_bytes()
        (texts / "in.jsonl").write_bytes(jsonl([embedding("another")]))
        refused = run("in.jsonl", "-o", "out.jsonl", url=redis_url)
        assert refused.exit_code == 1
        assert "was begun from another input" in refused.stderr
        assert (texts / "out.jsonl").read_bytes() == before
        assert run("in.jsonl", "-o", "out.jsonl", "--restart", url=redis_url).exit_code == 0
    assert counted(texts / "out.jsonl") == {"another": 1}


def test_what_is_wrong_with_an_input_is_said_with_its_lines_and_nothing_is_sent(
    folder: Path, redis_url: str, connection: Redis
) -> None:
    (folder / "in.jsonl").write_bytes(jsonl([embedding("a"), embedding("a")]) + b"{\n" * 30)
    result = run("in.jsonl", "-o", "out.jsonl", url=redis_url)
    assert result.exit_code == 1
    assert "line 2: 'a' is that of line 1 too" in result.stderr
    assert "the input is refused, and nothing was sent; 11 more lines are wrong" in result.stderr
    assert os.listdir(folder) == ["in.jsonl"]
    assert connection.keys() == []
    (folder / "out.jsonl").write_text("mine\n")
    (folder / "in.jsonl").write_bytes(jsonl([embedding("a")]))
    assert "no batch wrote it" in run("in.jsonl", "-o", "out.jsonl", url=redis_url).stderr
    assert "are the same file" in run("in.jsonl", "-o", "in.jsonl", url=redis_url).stderr
