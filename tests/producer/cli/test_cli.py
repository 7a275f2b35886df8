"""The `impetus` command, from its arguments to its exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import click
import pytest
from rq import Queue, SimpleWorker

from impetus_producer import Producer
from impetus_producer.cli.main import cli
from impetus_producer.contract import STANDBY_QUEUE, WORKER_RECORD_KEY, WorkerRecord
from impetus_producer.servers.local import LocalServer

from ..stock_worker import StockWorker, generation_of, working
from .typed import PROGRAM, all_of, names, run

pytestmark = pytest.mark.system

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from redis import Redis


def test_top_shows_the_queues_again_and_again_in_a_terminal_and_refuses_to_elsewhere(
    redis_url: str, producer: Producer, worker: StockWorker
) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 200))
    command = [*PROGRAM, "top", "--every", "0.2", "--redis-url", redis_url]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while shown.count(b"ended/s") < 3:
        shown += os.read(ours, 4096)
    producer.embed("a text").result(timeout_s=30)
    shown = b""
    while not re.search(rb"embedding +0 +0 +1 +0 +[0-9.]+\x1b", shown):
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    os.close(ours)
    elsewhere = run("top", "--redis-url", redis_url)
    assert elsewhere.exit_code == 2
    assert "impetus status --json" in elsewhere.output


@pytest.mark.parametrize("options", [(), ("--stream",)])
def test_a_terminal_obeys_nothing_of_a_models_text_and_a_file_gets_it_as_it_is(
    redis_url: str, options: tuple[str, ...]
) -> None:
    said = "two\nlines\tand \x1b]0;title\x07\x9b2J\r🙂"
    command = [*PROGRAM, "generate", "hello", *options, "--redis-url", redis_url]
    with working(redis_url, lambda function, request: generation_of(said)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL)
        os.close(theirs)
        shown = all_of(ours)
        assert process.wait(60) == 0
        assert shown.decode().replace("\r\n", "\n") == "two\nlines\tand \\x1b]0;title\\x07\\x9b2J\\r🙂\n"
        if not options:
            assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode() == f"{said}\n"


def test_generate_prints_the_text_alone_and_with_json_everything(redis_url: str, worker: StockWorker) -> None:
    assert run("generate", "hello", url=redis_url).stdout == "hello\n"
    assert run("generate", "-", "--raw", url=redis_url, stdin="zwölf".encode()).stdout == "zwölf\n"
    whole = json.loads(run("generate", "hello", "--json", url=redis_url).stdout)
    assert (whole["text"], whole["usage"]["completion_tokens"]) == ("hello", 1)


def test_generate_sends_a_conversation_unless_told_to_continue_the_prompt(folder: Path, redis_url: str) -> None:
    requests = []

    def note(function: str, request: dict[str, Any]) -> Any:
        requests.append(request)
        return generation_of("ok")

    (folder / "talk.json").write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]')
    options = ["--max-tokens=9", "--temperature=0", "--top-p=0.5", "--seed=1", "--stop=x", "--stop=y", "--model=m"]
    with working(redis_url, note):
        run("generate", "p", "--system", "s", *options, url=redis_url)
        run("generate", "p", "--messages", "talk.json", url=redis_url)
        run("generate", "p", "--raw", url=redis_url)
    assert requests[0] == {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 1,
        "stop": ["x", "y"],
        "model": "m",
    }
    assert [message["content"] for message in requests[1]["messages"]] == ["a", "b", "p"]
    assert requests[2] == {"prompt": "p"}


def test_generate_refuses_bad_options_with_one_sentence(redis_url: str) -> None:
    for arguments, code in (
        (["p", "--temperature", "3"], 1),
        (["p", "--max-tokens", "0"], 1),
        ([], 2),
        (["p", "--raw", "--system", "s"], 2),
    ):
        result = run("generate", *arguments, url=redis_url)
        assert result.exit_code == code
        assert "Error: " in result.stderr
    result = run("generate", "p", "--timeout", "0.01", url=redis_url)
    assert result.exit_code == 1
    assert "is queued: no result within 0.01 s. Ask again: impetus result" in result.stderr


def test_result_and_cancel_take_the_id_of_a_job(redis_url: str, producer: Producer, worker: StockWorker) -> None:
    embedding, generation = producer.embed(["a", "b"]).job_id, producer.generate("hi").job_id
    rows = run("result", embedding, url=redis_url).stdout.splitlines()
    assert [len(json.loads(row)) for row in rows] == [8, 8]
    whole = json.loads(run("result", embedding, "--json", url=redis_url).stdout)
    assert whole["embeddings"]["data"] == [json.loads(row) for row in rows]
    assert run("result", generation, url=redis_url).stdout == "hi\n"
    ended = run("cancel", generation, url=redis_url)
    assert (ended.exit_code, ended.stderr) == (1, f"Error: job {generation} had ended before: it is finished\n")
    assert "Error: there is no job nobody" in run("result", "nobody", url=redis_url).stderr


def test_a_waiting_job_is_cancelled(redis_url: str, producer: Producer) -> None:
    job_id = producer.embed("a").job_id
    assert run("result", job_id, "--timeout", "0", url=redis_url).exit_code == 1
    assert run("cancel", job_id, url=redis_url).stdout == f"cancelled {job_id}\n"
    assert "was cancelled" in run("result", job_id, url=redis_url).stderr


def test_status_tells_queues_and_workers_and_changes_nothing(redis_url: str, connection: Redis) -> None:
    producer = Producer(connection=connection)
    producer.embed("a")
    producer.generate("b")
    Queue("other", connection=connection).enqueue("os.getcwd")
    connection.zadd("rq:failed:embedding", {"gone": 5, "kept": -1})
    stock = SimpleWorker(["embedding", "other"], connection=connection, name="stock")
    stock.register_birth()
    before = connection.zrange("rq:failed:embedding", 0, -1)
    state = json.loads(run("status", "--json", url=redis_url).stdout)
    queues = {queue.pop("name"): queue for queue in state["queues"]}
    assert queues["embedding"].pop("oldest_s") >= 0
    assert queues["embedding"] == {"waiting": 1, "running": 0, "finished": 0, "failed": 1}
    assert [queues[name]["waiting"] for name in ("generation", "embedding-bulk", "other")] == [1, 0, 1]
    (seen,) = state["workers"]
    assert (seen["name"], seen["queues"], seen["jobs"]) == ("stock", ["embedding", "other"], 0)
    assert state["unattended"] == ["embedding-bulk", "generation", "generation-bulk"]
    assert connection.zrange("rq:failed:embedding", 0, -1) == before

    text = run("status", url=redis_url).stdout
    assert "No worker is listening to embedding-bulk, generation, generation-bulk." in text
    connection.hset("rq:worker:stock", "last_heartbeat", "2020-01-01T00:00:00.000000Z")
    assert "silent" in run("status", url=redis_url).stdout
    connection.set("rq:suspended", 1)
    assert "suspended" in run("status", url=redis_url).stdout
    stock.register_death()


def test_status_tells_where_each_worker_runs_its_model_and_who_stands_by(redis_url: str, connection: Redis) -> None:
    queues = {"fast": ["embedding"], "standing-by": [STANDBY_QUEUE], "stock": ["embedding"]}
    workers = [SimpleWorker(names, connection=connection, name=name) for name, names in queues.items()]
    for worker in workers:
        worker.register_birth()
    connection.sadd("rq:queues", f"rq:queue:{STANDBY_QUEUE}")
    for name, device, backend in (("fast", "ane", "coreml"), ("standing-by", "gpu", "mlx")):
        record = WorkerRecord(
            name=name, role="embedding", model="m", backend=backend, device=device, machine="Apple M4"
        )
        connection.set(WORKER_RECORD_KEY + name, record.model_dump_json(), ex=10)
    connection.set(f"{WORKER_RECORD_KEY}stock", "no record")
    state = json.loads(run("status", "--json", url=redis_url).stdout)
    assert [(seen["name"], seen["device"], seen["machine"]) for seen in state["workers"]] == [
        ("fast", "ane (coreml)", "Apple M4"),
        ("standing-by", "gpu (mlx)", "Apple M4"),
        ("stock", "", ""),
    ]
    assert STANDBY_QUEUE not in {queue["name"] for queue in state["queues"]}  # nothing ever waits there
    lines = run("status", url=redis_url).stdout.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("standing-by")] == [STANDBY_QUEUE]
    for worker in workers:
        worker.register_death()


def test_a_server_without_a_worker_is_said_and_waited_for(folder: Path, redis_url: str) -> None:
    (folder / "in.txt").write_text("one\n")
    command = [*PROGRAM, "embed", "in.txt", "-o", "out.npy", "--redis-url", redis_url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("No worker is listening to embedding-bulk. Start one: impetus-worker")
    with working(redis_url):
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.startswith("1 documents, 0 failed")


def test_errors_are_one_sentence_and_exit_1_without_a_traceback() -> None:
    for arguments in (["status"], ["result", "x"], ["cancel", "x"]):
        process = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
        assert process.returncode == 1
        assert process.stderr.startswith("Error: no Redis server is known")
        assert len(process.stderr.splitlines()) == 1


def test_without_a_server_or_the_worker_extra_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impetus_producer.servers.local.find_spec", lambda name: None)
    (folder / "in.txt").write_text("one\n")
    for arguments in (["embed", "in.txt", "-o", "out.npy"], ["generate", "hello"]):
        result = run(*arguments)
        assert (result.exit_code, "impetus-batch[worker]" in result.stderr) == (1, True), result.output
    assert names(folder) == ["in.txt"]


STANDS_IN = """
import os, sys
from impetus_producer.servers.discovery import ServerNote
ServerNote(sys.argv[1], os.getpid()).write()
if sys.argv[2] == "dies":
    from redis import Redis
    Redis.from_url(sys.argv[1]).blpop(["rq:queue:embedding-bulk", "rq:queue:generation"])
    sys.exit("the worker has had enough")
sys.stdin.read()
"""


@pytest.mark.parametrize("arguments", [["embed", "in.txt", "-o", "out.npy"], ["generate", "hello"]])
def test_with_no_server_one_is_started_and_its_end_is_noticed(
    folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (folder / "in.txt").write_text("one\n")
    given = []

    def stand_in(fate: str) -> Callable[[list[str]], LocalServer]:
        def start(options: list[str]) -> LocalServer:
            given.append(options)
            return LocalServer(command=[sys.executable, "-c", STANDS_IN, redis_url, fate])

        return start

    monkeypatch.setattr("impetus_producer.cli.settings.server.LocalServer", stand_in("dies"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert "ended with exit status 1: the worker has had enough" in result.stderr
    assert names(folder) == ["in.txt"]

    monkeypatch.setattr("impetus_producer.cli.settings.server.LocalServer", stand_in("serves"))
    with working(redis_url):
        result = run(*arguments, "--model", "m")
    assert result.exit_code == 0
    assert result.stderr.startswith("No server was given or found: starting one")
    role = "embedding" if arguments[0] == "embed" else "generation"
    assert given == [["--roles", role], ["--roles", role, f"--{role}-model", "m"]]


def test_a_reader_that_goes_away_early_is_no_error(redis_url: str, producer: Producer, worker: StockWorker) -> None:
    job_id = producer.embed(["text"] * 2000).job_id
    producer.handle(job_id).result(10)
    command = [*PROGRAM, "result", job_id, "--redis-url", redis_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(60)


def test_help_of_every_command_teaches_by_example() -> None:
    for command in cli.list_commands(click.Context(cli)):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"impetus {command}" in result.stdout
        assert "--redis-url" in result.stdout or command in ("batch", "config", "serve-key", "serve-webhook")
