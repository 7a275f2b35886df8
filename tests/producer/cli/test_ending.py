"""How `impetus` ends before its time: told by a signal, or as nobody reads what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click
import pytest
from redis import Redis as Client
from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_producer import Producer
from impetus_producer.cli.ending import Signals, ToldToEnd, check_signals
from impetus_producer.cli.settings.server import _Notice
from tests.patience import eventually

from ..batches.requests import embedding, jsonl
from ..bulk.kept import answers_kept
from ..stock_worker import StockWorker, honest_work, working
from .test_cli_stream import Program, popped
from .typed import PROGRAM, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from ..servers.valkey import Valkey

pytestmark = pytest.mark.system

SIGNALS = [(signal.SIGINT, "Interrupted."), (signal.SIGTERM, "Ended by SIGTERM."), (signal.SIGHUP, "Ended by SIGHUP.")]
OF_A_JOB = [["generate", "hello"], ["generate", "hello", "--stream"], ["rerank", "hello", "in.txt"]]


def begun(url: str, *arguments: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = [*PROGRAM, *arguments, "--redis-url", url]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def last_line(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate(timeout=60)
    return stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", OF_A_JOB)
@pytest.mark.parametrize(("number", "how"), SIGNALS)
def test_whoever_ends_it_while_it_waits_has_its_job_withdrawn_and_reads_so(
    folder: Path, redis_url: str, connection: Redis, arguments: list[str], number: int, how: str
) -> None:
    (folder / "in.txt").write_text("one\ntwo\n")
    process = begun(redis_url, *arguments)
    keys: Any = eventually(lambda: connection.keys("rq:job:*"))
    job_id = keys[0].decode().removeprefix("rq:job:")
    process.send_signal(number)
    assert last_line(process) == f"{how} Job {job_id} was withdrawn."
    assert process.returncode == 128 + number
    assert Job.fetch(job_id, connection, serializer=JSONSerializer).is_canceled


def test_ctrl_c_before_the_answer_to_enqueueing_withdraws_the_job_all_the_same(
    redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = Producer.enqueue

    def interrupted(*arguments: Any) -> int:
        enqueue(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Producer, "enqueue", interrupted)
    result = run("generate", "hello", url=redis_url)
    assert (result.exit_code, result.stderr.splitlines()[-1][-15:]) == (130, " was withdrawn.")
    assert connection.llen("rq:queue:generation") == 0


def test_ctrl_c_between_a_question_and_its_answer_leaves_the_answer_to_nobody_else(
    redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_response: Any = Client.parse_response

    def interrupted(client: Client, line: Any, name: str, **options: Any) -> Any:
        if name == "XREAD":
            raise KeyboardInterrupt
        return parse_response(client, line, name, **options)

    monkeypatch.setattr(Client, "parse_response", interrupted)
    result = run("generate", "hello", url=redis_url)
    assert (result.exit_code, result.stderr.splitlines()[-1][-15:]) == (130, " was withdrawn.")
    assert connection.llen("rq:queue:generation") == 0


def test_where_the_server_is_gone_it_says_how_to_withdraw_the_job_later(
    valkey: Callable[..., Valkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = valkey()

    def gone(*arguments: Any) -> int:
        server.kill()
        raise KeyboardInterrupt

    monkeypatch.setattr(Producer, "enqueue", gone)
    result = run("generate", "hello", url=server.url)
    said = result.stderr.splitlines()[-1]
    assert result.exit_code == 130
    assert "could not be withdrawn" in said
    assert "do so later: impetus cancel " in said


@pytest.mark.parametrize(("number", "how"), SIGNALS)
def test_a_job_that_somebody_else_enqueued_is_left_alone(
    redis_url: str, connection: Redis, number: int, how: str
) -> None:
    job_id = Producer(redis_url).generate("hello", stream=True).job_id
    program = Program("result", job_id, "--stream", redis_url=redis_url)
    popped(connection).write("so far")
    program.output.until("so far")
    program.process.send_signal(number)
    code, stdout, stderr = program.ended()
    assert (code, stdout) == (128 + number, "so far\n")
    assert stderr == f"{how} The job is left alone; ask again: impetus result {job_id}.\n"
    assert not connection.keys("impetus:cancel:*")


@contextmanager
def held(url: str, at: int) -> Iterator[threading.Event]:
    """A worker that holds its job number `at`, from when the event is set to the end of the block."""
    reached, go_on, count = threading.Event(), threading.Event(), iter(range(1_000_000))

    def work(function: str, request: dict[str, Any]) -> Any:
        if next(count) == at:
            reached.set()
            assert go_on.wait(60)
        return honest_work(function, request)

    with working(url, work):
        try:
            yield reached
        finally:
            go_on.set()


@pytest.mark.parametrize(("number", "how"), SIGNALS)
def test_a_run_says_how_to_go_on_and_leaves_nothing_on_the_queues(
    folder: Path, redis_url: str, connection: Redis, number: int, how: str
) -> None:
    (folder / "in.txt").write_text("".join(f"text {n}\n" for n in range(100)))
    (folder / "in.jsonl").write_bytes(jsonl([embedding(f"text {n}") for n in range(100)]))
    go_on = "run the same command again to go on."
    for arguments, remains in (
        (["embed", "in.txt", "--texts-per-job", "5"], f"What is done is kept in out.jsonl.impetus: {go_on}"),
        (["batch", "run", "in.jsonl", "--window", "32"], go_on),
    ):
        with held(redis_url, 3) as reached:
            process = begun(redis_url, *arguments, "-o", "out.jsonl")
            assert reached.wait(60)
            eventually(lambda: (folder / "out.jsonl").exists() or answers_kept(folder / "out.jsonl"))
            process.send_signal(number)
            said = last_line(process)
            assert said.startswith(f"{how} out.jsonl is not whole yet")
            assert said.endswith(remains)
            assert process.returncode == 128 + number
            assert connection.llen("rq:queue:embedding-bulk") == 0


EMBED, BATCH = ["embed", "in.txt", "-o", "out.jsonl"], ["batch", "run", "in.jsonl", "-o", "out.jsonl"]


@pytest.mark.parametrize(
    ("command", "discarding"), [(EMBED, "impetus_producer.bulk.window"), (BATCH, "impetus_producer.batches.runner")]
)
def test_a_run_that_is_cut_short_while_it_withdraws_its_jobs_is_gone_on_with(
    folder: Path,
    redis_url: str,
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    discarding: str,
) -> None:
    (folder / "in.txt").write_text("one\ntwo\n")
    (folder / "in.jsonl").write_bytes(jsonl([embedding("one"), embedding("two")]))

    def nobody_reads(_: object) -> None:
        if connection.llen("rq:queue:embedding-bulk"):
            raise BrokenPipeError

    def silent(*_: object) -> None:
        raise TimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(_Notice, "__call__", nobody_reads)
        patched.setattr(f"{discarding}.jobs.discarding", silent)
        assert run(*command, url=redis_url).exit_code == 141
    assert not connection.keys("rq:job:*")
    with working(redis_url):
        assert run(*command, url=redis_url).exit_code == 0
    assert (folder / "out.jsonl").read_text().count("\n") == 2


def test_a_text_that_nobody_reads_any_more_is_not_made_either(redis_url: str, connection: Redis) -> None:
    process = begun(redis_url, "generate", "hello", "--stream", stdout=subprocess.PIPE)
    assert process.stdout is not None
    writer = popped(connection)
    writer.write("so far")
    assert process.stdout.read(6) == "so far"
    process.stdout.close()
    while process.poll() is None:
        writer.write("more")
    assert connection.exists(f"impetus:cancel:{writer.job_id}")
    assert process.returncode == 141
    assert process.stderr is not None
    with process.stderr as stderr:
        assert "Traceback" not in stderr.read()


def test_a_run_whose_progress_nobody_reads_any_more_leaves_nothing_on_the_queues(
    folder: Path, redis_url: str, connection: Redis
) -> None:
    (folder / "in.jsonl").write_bytes(jsonl([embedding(f"text {n}") for n in range(100)]))
    process = begun(redis_url, "batch", "run", "in.jsonl", "-o", "out.jsonl", "--window", "32")
    eventually(lambda: connection.llen("rq:queue:embedding-bulk"))
    assert process.stderr is not None
    process.stderr.close()
    connection.set("rq:suspended", 1)  # of which it would speak
    assert process.wait(60) == 141
    assert connection.llen("rq:queue:embedding-bulk") == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="macOS has no file that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_cannot_be_printed_is_one_sentence(redis_url: str, worker: StockWorker, unbuffered: str) -> None:
    command = [*PROGRAM, "generate", "hello", "--redis-url", redis_url]
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert process.stderr.splitlines()[-1].startswith("Error: what is printed cannot be written: the disk")
    assert "Traceback" not in process.stderr
    assert process.returncode == 1


def test_ctrl_c_while_the_program_loads_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run([*PROGRAM, "status"], capture_output=True, check=False, env=environment)
    assert (process.returncode, process.stderr) == (-signal.SIGINT, b"")


def test_what_a_library_swallows_is_raised_once_more() -> None:
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    signals = Signals()
    signals.hear()
    try:
        with click.Context(click.Command("x"), obj=signals):
            check_signals()
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(ToldToEnd):
                check_signals()
    finally:
        signals.forget()
        for number, handler in before.items():
            signal.signal(number, handler)
