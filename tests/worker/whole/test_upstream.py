"""Generations forwarded to a real `mlx_lm.server`, through a real worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from rq import Retry

from impetus_producer import GenerationHandle, JobCancelledError, JobFailedError, Producer
from impetus_producer.contract import GENERATE_FUNCTION, STREAM_KEY, GenerationResult
from tests.paths import DATA
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..conftest import Fleet, RunningWorker

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("mlx_lm") is None, reason="MLX is not installed (pip install 'impetus-batch[mlx]')"),
]
MODEL = DATA / "models" / "tiny-says"
PAIRS = (DATA / "questions.txt").read_text(encoding="utf-8").strip().split("\n\n")
KNOWN = dict([line[3:] for line in pair.splitlines()] for pair in PAIRS)
QUESTION = next(iter(KNOWN))
ENDLESS: dict[str, Any] = {
    "logit_bias": dict.fromkeys(json.loads((MODEL / "config.json").read_text())["eos_token_id"], -100.0),
    "max_tokens": 1_000_000,
}
"""An answer that nothing ends within any test's time."""
LOAD_S = 60.0


class Upstream:
    """`mlx_lm.server` on a port that stays the same."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = folder / "upstream.log"
        (folder / "hub").mkdir()  # without one its list of models cannot be read
        self._environment = {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, rows: int = 4) -> None:
        """`rows`: how many answers it makes at a time."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlx_lm.server", "--model", str(MODEL), "--port", str(self.port),
                 "--decode-concurrency", str(rows), "--prompt-concurrency", str(rows)],
                stdout=log, stderr=log, env=self._environment,
            )  # fmt: skip
        eventually(self._lists_its_model, LOAD_S)

    def _lists_its_model(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v1/models")
            with connection.getresponse() as response:
                return b"tiny-says" in response.read()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    (folder := tmp_path / "upstream").mkdir()
    upstream = Upstream(folder)
    try:
        yield upstream
    finally:
        upstream.kill()


def start_worker(fleet: Fleet, upstream: Upstream, *options: str) -> RunningWorker:
    return fleet.start("--generation-backend", "openai", "--upstream", upstream.url, *options, roles="generation")


def ask(producer: Producer, question: str = QUESTION, **fields: Any) -> GenerationHandle:
    return producer.generate(messages=[{"role": "user", "content": question}], temperature=0, stream=True, **fields)


def test_known_answers_stream_through_another_server_and_the_result_is_the_contracts(
    fleet: Fleet, upstream: Upstream
) -> None:
    upstream.start()
    worker = start_worker(fleet, upstream)
    producer = Producer(fleet.url)
    handles = {question: ask(producer, question) for question in KNOWN}
    assert {question: "".join(handle.stream(60)).strip() for question, handle in handles.items()} == KNOWN
    for question, handle in handles.items():
        result = GenerationResult.model_validate(handle.result(60).model_dump())
        assert (result.text.strip(), result.finish_reason, result.model) == (KNOWN[question], "stop", "tiny-says")
        assert (result.provenance.backend, result.provenance.device) == ("openai", "upstream")
        assert result.usage.prompt_tokens > 5
        assert result.usage.completion_tokens > 5
        assert 0 < result.timings.first_token_s <= result.timings.total_s
    several = ask(producer, n=2).result(60)
    assert [each.text.strip() for each in several.choices] == [KNOWN[QUESTION]] * 2
    continued = producer.generate("Q: Where", max_tokens=3, temperature=0).result(60)
    assert (continued.finish_reason, continued.usage.completion_tokens) == ("length", 3)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    with pytest.raises(JobFailedError, match="response_format: the upstream's answer is no JSON"):
        ask(producer, response_format=form).result(60)
    with pytest.raises(JobFailedError, match="logprobs: the upstream sends none"):
        ask(producer, logprobs=True).result(60)
    with pytest.raises(JobFailedError, match="the upstream answers 400: "):
        producer.generate("x", logprobs=True, top_logprobs=20).result(60)
    with pytest.raises(JobFailedError, match="serves tiny-says and not 'tiny-clever'"):
        ask(producer, model="tiny-clever").result(60)
    assert "tiny-says" in worker.log
    assert "Traceback" not in worker.log


def test_a_cancelled_job_keeps_what_it_made_and_leaves_the_server_to_the_next(fleet: Fleet, upstream: Upstream) -> None:
    upstream.start(rows=1)
    start_worker(fleet, upstream, "--max-concurrent-generations", "1")
    producer = Producer(fleet.url)
    endless = ask(producer, **ENDLESS)
    pieces = endless.stream(60)
    begun = next(pieces) + next(pieces)
    waiting = ask(producer)
    assert endless.cancel()
    with pytest.raises(JobCancelledError) as stopped:
        endless.result(60)
    assert stopped.value.partial is not None
    assert stopped.value.partial.text.startswith(begun)
    assert stopped.value.partial.finish_reason == "cancelled"
    # The server makes one answer at a time: this one only after it has given up the other.
    assert waiting.result(60).text.strip() == KNOWN[QUESTION]


def test_a_server_that_is_killed_fails_a_job_with_a_sentence_and_retries_get_over_it(
    fleet: Fleet, upstream: Upstream
) -> None:
    upstream.start()
    worker = start_worker(fleet, upstream)
    producer = Producer(fleet.url)
    endless = ask(producer, **ENDLESS)
    next(endless.stream(60))
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True, **ENDLESS}
    body["logit_bias"] = {str(token): bias for token, bias in ENDLESS["logit_bias"].items()}
    retried = fleet.queue("generation").enqueue(GENERATE_FUNCTION, body, retry=Retry(max=1))
    key = STREAM_KEY + retried.id

    def runs_with_text() -> int:
        entries: Any = fleet.connection.xrange(key)
        return len({entry[b"run"] for _, entry in entries if entry[b"event"] == b"text"})

    eventually(lambda: runs_with_text() == 1, LOAD_S)
    upstream.kill()
    with pytest.raises(JobFailedError, match="upstream") as failed:
        endless.result(60)
    assert len(str(failed.value).splitlines()) == 1
    # Whoever is not there is waited for: the second try begins while nothing listens.
    upstream.start()
    eventually(lambda: runs_with_text() == 2, LOAD_S)
    assert fleet.job(retried.id).retries_left == 0
    assert ask(producer).result(60).text.strip() == KNOWN[QUESTION]
    assert "Traceback" not in worker.log


def test_a_worker_whose_server_is_not_there_says_what_to_start(fleet: Fleet, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    worker = fleet.start(
        "--generation-backend", "openai", "--upstream", url, roles="generation", wait=False
    )  # fmt: skip
    assert worker.process.wait(30) == 3
    assert f"openai: nothing at {url} answers" in worker.log
    assert "start the server there" in worker.log
    assert "Traceback" not in worker.log
