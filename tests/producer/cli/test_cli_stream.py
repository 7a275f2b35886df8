"""`impetus generate --stream` and `impetus result --stream`, as programs whose output is read while they run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_producer import Producer
from impetus_producer.cli.main import cli
from tests.patience import eventually

from ..stock_worker import StockWorker, generation_of, working
from ..talks.streaming import Reading, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

pytestmark = pytest.mark.system


class Program:
    """`impetus` with these arguments; `output` is read a character at a time."""

    def __init__(self, *arguments: str, redis_url: str) -> None:
        command = [sys.executable, "-m", "impetus_producer", *arguments, "--redis-url", redis_url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.output = Reading(self._characters)

    def ended(self) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            stderr = stream.read()
        stdout = "".join(self.output.all())
        return self.process.wait(60), stdout, stderr

    def _characters(self) -> Iterator[str]:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            while character := stdout.read(1):
                yield character


def popped(connection: Redis) -> Writer:
    """The next job of the queue, in the hands of a worker that streams."""
    taken: Any = eventually(lambda: connection.lpop("rq:queue:generation"))
    return Writer(connection, taken.decode()).start()


def test_text_is_printed_as_it_comes(redis_url: str, connection: Redis) -> None:
    program = Program("generate", "hello", "--stream", redis_url=redis_url)
    writer = popped(connection).write("Zü")
    program.output.until("Zü")
    writer.write("rich 🙂").finish()
    code, stdout, _ = program.ended()
    assert (code, stdout) == (0, "Zürich 🙂\n")


def test_a_restart_is_said_and_the_text_begins_on_a_new_line(redis_url: str, connection: Redis) -> None:
    program = Program("generate", "hello", "--stream", redis_url=redis_url)
    writer = popped(connection).write("the fir")
    program.output.until("the fir")
    Writer(connection, writer.job_id, "run-2").start().write("the second").finish()
    code, stdout, stderr = program.ended()
    assert (code, stdout) == (0, "the fir\nthe second\n")
    assert "began anew" in stderr


def test_ctrl_c_withdraws_the_job_and_keeps_what_was_printed(redis_url: str, connection: Redis) -> None:
    program = Program("generate", "hello", "--stream", redis_url=redis_url)
    client: Any = connection
    with client.pubsub() as commands:
        commands.psubscribe("rq:pubsub:*")
        writer = popped(connection).write("so far")
        job = Job.fetch(writer.job_id, connection, serializer=JSONSerializer)
        job.worker_name = "ours"
        job.save()
        program.output.until("so far")
        program.process.send_signal(signal.SIGINT)
        code, stdout, stderr = program.ended()
        sent = [message["data"] for message in iter(lambda: commands.get_message(timeout=0.1), None)]
    assert (code, stdout) == (130, "so far\n")
    assert "Traceback" not in stderr
    assert any(b"stop-job" in data for data in sent if isinstance(data, bytes))


def test_a_job_that_fails_keeps_its_text_and_says_why(redis_url: str, connection: Redis) -> None:
    program = Program("generate", "hello", "--stream", redis_url=redis_url)
    writer = popped(connection).write("so far")
    program.output.until("so far")
    writer.fail("the model failed")
    code, stdout, stderr = program.ended()
    assert (code, stdout) == (1, "so far\n")
    assert stderr.splitlines()[-1] == "Error: the model failed"


def test_a_job_that_runs_already_can_be_followed_from_its_beginning(redis_url: str, connection: Redis) -> None:
    handle = Producer(connection=connection).generate("hello", stream=True)
    writer = popped(connection).write("begun ")
    program = Program("result", handle.job_id, "--stream", redis_url=redis_url)
    program.output.until("begun ")
    writer.write("and done").finish()
    assert program.ended()[:2] == (0, "begun and done\n")


def run(redis_url: str, *arguments: str) -> Any:
    return CliRunner().invoke(cli, [*arguments, "--redis-url", redis_url])


def test_following_stops_after_the_time_given_and_says_how_to_go_on(redis_url: str, connection: Redis) -> None:
    handle = Producer(connection=connection).generate("hello", stream=True)
    popped(connection).write("begun")
    result = run(redis_url, "result", handle.job_id, "--stream", "--timeout", "0.05")
    assert result.exit_code == 1
    assert result.stdout == "begun\n"
    assert f"impetus result {handle.job_id} --stream" in result.stderr


def test_options_of_sampling_and_of_the_form_of_the_answer_reach_the_worker(folder: Path, redis_url: str) -> None:
    requests: list[dict[str, Any]] = []

    def work(function: str, request: dict[str, Any]) -> Any:
        requests.append(request)
        return generation_of("{}")

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    (folder / "a.json").write_text(json.dumps(schema))
    with working(redis_url, work):
        sampling = ("--top-k", "5", "--min-p", "0.1", "--repetition-penalty", "1.1", "--special-tokens", "text")
        results = [
            run(redis_url, "generate", "x", *sampling, "--json-schema", "a.json", "--logprobs", "--json"),
            run(redis_url, "generate", "x", "--json-schema", json.dumps(schema)),
            run(redis_url, "generate", "x", "--json-object", "--stream"),
        ]
    assert [result.exit_code for result in results] == [0, 0, 0]
    by_schema = {"type": "json_schema", "json_schema": {"schema": schema}}
    messages = [{"role": "user", "content": "x"}]
    assert requests == [
        {"messages": messages, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "logprobs": True,
         "response_format": by_schema, "special_tokens": "text"},
        {"messages": messages, "response_format": by_schema},
        {"messages": messages, "response_format": {"type": "json_object"}, "stream": True},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stream", "--json"], "give one"),
        (["--logprobs"], "add --json"),
        (["--json-object", "--json-schema", "{}"], "not both"),
        (["--json-schema", "missing.json"], "'missing.json' cannot be read: No such file"),
        (["--json-schema", "{"], "the schema is no JSON"),
        (["--json-schema", "list.json"], "response_format.json_schema.schema"),
        (["--min-p", "3"], "min_p"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_one_sentence(
    folder: Path, redis_url: str, arguments: list[str], sentence: str
) -> None:
    (folder / "list.json").write_text("[1]")
    result = run(redis_url, "generate", "x", *arguments)
    assert result.exit_code != 0
    assert sentence in result.stderr


def test_an_embedding_job_has_no_text_to_stream(redis_url: str, connection: Redis, worker: StockWorker) -> None:
    handle = Producer(connection=connection).embed("a")
    assert "there is none to stream" in run(redis_url, "result", handle.job_id, "--stream").stderr
