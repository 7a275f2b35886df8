"""Reranking from a service, a task and a shell, with a fake worker at the other end."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_producer import AsyncProducer, InvalidRequestError, Producer, RerankHandle
from impetus_producer.cli.main import cli
from impetus_producer.cli.settings.server import Session
from impetus_producer.contract import (
    ROLE_FUNCTIONS,
    ROLE_QUEUES,
    RerankRequest,
    RerankResult,
    role_of_queue,
)
from impetus_producer.enqueueing.parsing import parse_request
from impetus_producer.errors import JobFailedError
from impetus_producer.testing import FakeWorker
from impetus_producer.watching.fleet import read_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

DOCUMENTS = ["a lazy dog", "a quick fox", "the quick brown fox"]


@pytest.fixture
def fake() -> Iterator[FakeWorker]:
    with FakeWorker() as worker:
        yield worker


def test_documents_come_back_by_their_relevance_as_many_as_were_asked_for(fake: FakeWorker) -> None:
    result = fake.producer.rerank("quick brown fox", DOCUMENTS, top_n=2, return_documents=True).result(10)
    assert [(each.index, each.document.text) for each in result.results if each.document] == [
        (2, "the quick brown fox"), (1, "a quick fox"),
    ]  # fmt: skip
    assert [each.document for each in fake.producer.rerank("fox", DOCUMENTS).result(10).results] == [None] * 3
    assert [job.queue for job in fake.jobs] == ["rerank", "rerank"]


def test_a_job_says_what_was_asked_and_nothing_else(fake: FakeWorker) -> None:
    with fake.paused():
        fake.producer.rerank("fox", [{"text": "a"}, "b"], bulk=True)
        (job,) = fake.jobs
    assert (job.queue, job.function) == ("rerank-bulk", "impetus_worker.jobs.rerank")
    assert job.request == {"query": "fox", "documents": [{"text": "a"}, "b"]}


def test_a_handle_made_from_an_id_reads_rankings_too(fake: FakeWorker) -> None:
    handle = fake.producer.handle(fake.producer.rerank("fox", DOCUMENTS).job_id)
    assert isinstance(handle, RerankHandle)
    assert len(handle.result(10).results) == 3
    fake.fail_next("the reranker is out")
    with pytest.raises(JobFailedError, match="the reranker is out"):
        fake.producer.rerank("fox", DOCUMENTS).result(10)


def test_a_task_reranks_as_a_thread_does(fake: FakeWorker) -> None:
    async def ask() -> tuple[RerankResult, Any]:
        async with AsyncProducer(connection=fake.connection, patience_s=0) as producer:
            handle = await producer.rerank("brown fox", DOCUMENTS, top_n=1)
            return await handle.result(10), await (await producer.handle(handle.job_id)).result(10)

    first, again = asyncio.run(ask())
    assert [each.index for each in first.results] == [2]
    assert again == first


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"documents": []}, "documents: the list is empty"),
        ({"documents": "text"}, "documents: must be a list of strings, or of objects with a text, not a string"),
        ({"documents": ["a"] * 2049}, "2049 documents are more than the 2048 a job may carry"),
        ({"documents": [{"text": "a", "url": "b"}]}, "item 0: an object has a text and nothing else"),
        ({"documents": [None]}, "item 0 must be a string, not null"),
        ({"documents": ["\ud800"]}, "item 0 holds half a surrogate pair"),
        ({"documents": ["a" * 10_000_001]}, "item 0 is longer than 10,000,000 bytes"),
        ({"query": 3}, "query: the query must be a string, not a number"),
        ({"top_n": 0}, "top_n: "),
        ({"top_n": True}, "top_n: "),
        ({"max_tokens_per_doc": 4, "truncate": False}, "max_tokens_per_doc: cuts documents"),
    ],
)
def test_what_a_worker_would_refuse_is_refused_before_it_is_sent(
    fields: dict[str, Any], sentence: str, fake: FakeWorker
) -> None:
    asked = {"query": "q", "documents": ["a"]} | fields
    with pytest.raises(InvalidRequestError, match=sentence):
        fake.producer.rerank(**asked)
    assert fake.jobs == []


def test_null_says_the_same_as_nothing_and_an_unknown_field_is_named() -> None:
    nulls = dict.fromkeys(("top_n", "return_documents", "model", "max_tokens_per_doc", "truncate"))
    request = parse_request(RerankRequest, {"query": "q", "documents": ["a"], **nulls})
    assert request == RerankRequest(query="q", documents=["a"])
    with pytest.raises(InvalidRequestError, match="rank_fields: there is no such field"):
        parse_request(RerankRequest, {"query": "q", "documents": ["a"], "rank_fields": ["text"]})


def test_every_role_has_two_queues_and_a_function() -> None:
    assert set(ROLE_FUNCTIONS) == set(ROLE_QUEUES)
    assert {queue: role_of_queue(queue) for queues in ROLE_QUEUES.values() for queue in queues} == {
        queue: role for role, queues in ROLE_QUEUES.items() for queue in queues
    }
    assert role_of_queue("somebodys") == "embedding"


def test_nobody_need_rerank_until_a_job_waits_for_it(connection: Redis, redis_url: str) -> None:
    assert not {"rerank", "rerank-bulk"} & set(read_fleet(connection).unattended())
    Producer(redis_url).rerank("q", ["a"])
    fleet = read_fleet(connection)
    assert "rerank" in fleet.unattended()
    assert "rerank-bulk" not in fleet.unattended()
    said = CliRunner().invoke(cli, ["status", "--redis-url", redis_url]).output
    assert "--rerank-model" in said


# -- the shell -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, fake: FakeWorker) -> CliRunner:
    """Whose server is the fake worker's."""

    @contextmanager
    def open_fake(*arguments: object) -> Iterator[Session]:
        yield Session(fake.producer, lambda: None)

    monkeypatch.setattr("impetus_producer.cli.rerank.open_session", open_fake)
    return CliRunner()


def test_lines_and_lists_of_documents_are_printed_the_best_first(shell: CliRunner, tmp_path: Path) -> None:
    lines, listed = tmp_path / "lines.txt", tmp_path / "list.json"
    lines.write_text("a lazy dog\n\na quick fox\n")
    listed.write_text(json.dumps(["a dog", {"text": "brown\n\tfox"}]))
    assert shell.invoke(cli, ["rerank", "quick fox", str(lines)]).output == (
        "1.000000\t1\ta quick fox\n0.000000\t0\ta lazy dog\n"
    )
    assert shell.invoke(cli, ["rerank", "brown fox", str(listed), "--top-n", "1"]).output == (
        "1.000000\t1\tbrown fox\n"
    )
    texts = '{"text": "a lazy dog"}\n{"id": 7, "text": "a quick fox"}\n'
    for content, best in ((texts, "a quick fox"), (texts + "{}\n", '{"id": 7, "text": "a quick fox"}')):
        said = shell.invoke(cli, ["rerank", "quick fox", "-", "--top-n", "1"], input=content).output
        assert said.split("\t")[2] == best + "\n"
    said = shell.invoke(cli, ["rerank", "fox", "-", "--json"], input="fox\ndog\n").output
    assert [each["index"] for each in json.loads(said)["results"]] == [0, 1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "documents: the list is empty"),
        (b"\xff\xfe", "is not UTF-8, from byte 1 on"),
        (b"[1", "begins with a bracket and is no JSON"),
        (b"[1]", "item 0 must be a string, not a number"),
    ],
)
def test_a_file_that_holds_no_documents_is_refused_with_the_reason(
    content: bytes, sentence: str, shell: CliRunner, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    said = shell.invoke(cli, ["rerank", "q", str(file)])
    assert said.exit_code == 1
    assert sentence in said.output
