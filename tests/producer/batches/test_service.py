"""Batches of a folder, run against a real server; a stock worker works."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from openai.types import Batch as OpenAIBatch

from impetus_producer import AsyncProducer
from impetus_producer.batches import runner
from impetus_producer.batches.service import BatchService
from impetus_producer.batches.store import BatchStore
from impetus_producer.contract import BATCH_KEY
from tests.patience import eventually

from ..stock_worker import honest_work, vector_of, working
from .requests import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RERANK,
    answers,
    chat,
    completion,
    counted,
    embedding,
    jsonl,
    ranking,
    read,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from redis import Redis

    from impetus_producer.batches.objects import Batch

pytestmark = pytest.mark.system


class Site:
    """A folder of batches, and where their answers come to lie."""

    def __init__(self, folder: Path, redis_url: str, contents_url: str | None = None) -> None:
        self.folder = folder
        self.store = BatchStore(folder, contents_url)
        self.redis_url = redis_url

    def add(self, lines: Iterable[Any], endpoint: str = EMBEDDINGS, **options: Any) -> str:
        file = self.store.add_file([jsonl(lines)], "in.jsonl")
        return self.store.add_batch(file.id, endpoint, **options).id

    @asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[BatchService]:
        """A service for the time of the block."""
        async with AsyncProducer(self.redis_url) as producer:
            service = BatchService(BatchStore(self.folder), producer, **options)
            task = asyncio.create_task(service.run())
            yield service
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def run(self, batch_id: str, **options: Any) -> Batch:
        """Runs a batch to its end."""

        async def main() -> Batch:
            async with AsyncProducer(self.redis_url) as producer:
                await BatchService(self.store, producer, **options).run_batch(batch_id)
            return self.store.batch(batch_id)

        return asyncio.run(main())

    def output(self, batch: Batch) -> Path:
        return self._place(batch.output_file_id)

    def errors(self, batch: Batch) -> Path:
        return self._place(batch.error_file_id)

    def _place(self, file_id: str | None) -> Path:
        return self.folder / "files" / f"{file_id}.data"


@pytest.fixture
def site(tmp_path: Path, redis_url: str) -> Site:
    return Site(tmp_path / "site", redis_url)


class Held:
    """A worker's work that counts the texts it was asked for, and holds at one of them until it is let go."""

    def __init__(self, at: str) -> None:
        self.asked: Counter[str] = Counter()
        self.at = at
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, function: str, request: dict[str, Any]) -> Any:
        (text,) = request["input"] if isinstance(request["input"], list) else [request["input"]]
        self.asked[text] += 1
        if text == self.at:
            self.reached.set()
            assert self.go_on.wait(60)
        return honest_work(function, request)


def test_a_batch_is_answered_and_a_line_fails_alone(site: Site, connection: Redis) -> None:
    batch_id = site.add(
        [
            embedding("float", "tea"),
            embedding("base64", ["tea", "milk"], encoding_format="base64"),
            embedding("refused", "x", dimensions=-1),
            embedding("failed", ["good", "bad one"]),
        ],
        metadata={"night": "first"},
    )
    with working(site.redis_url):
        batch = site.run(batch_id)
    shown = OpenAIBatch.model_validate(batch.shown())
    assert (shown.status, shown.metadata) == ("completed", {"night": "first"})
    assert shown.request_counts is not None
    assert shown.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 2}
    assert shown.created_at <= shown.in_progress_at <= shown.finalizing_at <= shown.completed_at  # type: ignore[operator]
    answered = answers(site.output(batch))
    assert answered["float"].data[0].embedding == vector_of("tea")
    # As the openai package reads it once it has decoded it.
    assert answered["base64"].data[1].embedding == vector_of("milk")
    errors = {line["custom_id"]: line["response"] for line in read(site.errors(batch))}
    assert (errors["refused"]["status_code"], errors["refused"]["body"]["error"]["param"]) == (400, "dimensions")
    assert errors["failed"]["body"]["error"]["message"] == "input: item 1 is bad"
    assert set(answered) | set(errors) == {"float", "base64", "refused", "failed"}
    assert site.store.file(str(batch.output_file_id)).purpose == "batch_output"
    assert connection.keys("rq:job:*") == connection.keys("rq:results:*") == []
    assert connection.keys(f"{BATCH_KEY}*") == []


@pytest.mark.parametrize("make", [chat, completion])
def test_generations_are_answered_in_their_endpoints_words(site: Site, make: Any) -> None:
    batch_id = site.add(
        [make("a", "hello", max_tokens=5), make("b", "hello", stream=True), make("c", n=0)],
        CHAT if make is chat else COMPLETIONS,
    )
    with working(site.redis_url):
        batch = site.run(batch_id)
    (choice,) = answers(site.output(batch))["a"].choices
    assert (choice.message.content if make is chat else choice.text) == "hello"
    errors = {line["custom_id"]: line["response"]["body"]["error"]["param"] for line in read(site.errors(batch))}
    assert errors == {"b": "stream", "c": "n"}


def test_rankings_are_answered_in_their_endpoints_words(site: Site, connection: Redis) -> None:
    documents = ["short", "the longest of all", "not so short"]
    batch_id = site.add([ranking("a", documents, top_n=2), ranking("b", []), ranking("c", documents, foo=1)], RERANK)
    with working(site.redis_url):
        batch = site.run(batch_id)
    (line,) = read(site.output(batch))
    body = line["response"]["body"]
    assert (line["custom_id"], body["id"]) == ("a", line["response"]["request_id"])
    assert [(each["index"], each["relevance_score"]) for each in body["results"]] == [(1, 0.18), (2, 0.12)]
    errors = {line["custom_id"]: line["response"]["body"]["error"]["param"] for line in read(site.errors(batch))}
    assert errors == {"b": "documents", "c": "foo"}
    assert connection.keys("rq:job:*") == []


def test_contents_may_lie_at_a_url(tmp_path: Path, redis_url: str) -> None:
    site = Site(tmp_path / "site", redis_url, f"memory://{tmp_path}")
    with working(redis_url):
        batch = site.run(site.add([embedding("a", "tea"), embedding("b", "bad")]))
    for file_id, custom_id in ((batch.output_file_id, "a"), (batch.error_file_id, "b")):
        with site.store.open_file(str(file_id)) as file:
            (line,) = map(json.loads, file)
        assert line["custom_id"] == custom_id
    assert batch.status == "completed"
    assert not list(site.folder.glob("files/*.data"))


def test_an_input_that_is_wrong_fails_the_batch_with_its_lines(site: Site, connection: Redis) -> None:
    batch = site.run(site.add([embedding("a"), chat("b"), embedding("a")]))
    shown = OpenAIBatch.model_validate(batch.shown())
    assert shown.status == "failed"
    assert shown.errors is not None
    assert [(error.code, error.line) for error in shown.errors.data or []] == [
        ("mismatched_endpoint", 2),
        ("duplicate_custom_id", 3),
    ]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert connection.keys("rq:*") == []
    gone = site.add([embedding("a")])
    site.store.delete_file(site.store.batch(gone).input_file_id)
    assert site.run(gone).errors.data[0].code == "file_not_found"  # type: ignore[union-attr]


def test_the_window_is_never_exceeded(site: Site) -> None:
    batch_id = site.add(embedding(f"{number}", f"text {number}") for number in range(100))
    with working(site.redis_url) as worker:
        batch = site.run(batch_id, window_jobs=7)
    assert worker.most_queued <= 7
    assert counted(site.output(batch)) == {f"{number}": 1 for number in range(100)}


def test_a_cancelled_batch_keeps_its_answers_and_names_what_was_not_asked(site: Site, connection: Redis) -> None:
    held = Held("text 20")
    batch_id = site.add(embedding(f"{number}", f"text {number}") for number in range(100))

    async def main() -> None:
        async with site.serving(window_jobs=16):
            await asyncio.to_thread(held.reached.wait, 60)
            # One job is held by the worker, so that what follows it waits.
            assert site.store.cancel_batch(batch_id).status == "cancelling"
            await asyncio.to_thread(eventually, lambda: connection.llen("rq:queue:embedding-bulk") == 0)
            held.go_on.set()
            await asyncio.to_thread(eventually, lambda: site.store.batch(batch_id).over)

    with working(site.redis_url, held):
        asyncio.run(main())
    batch = site.store.batch(batch_id)
    assert batch.status == "cancelled"
    errors = read(site.errors(batch))
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert counted(site.output(batch), site.errors(batch)) == {f"{number}": 1 for number in range(100)}
    assert len(errors) >= 100 - 21 - 1
    assert sum(held.asked.values()) < 40


def test_what_was_not_asked_when_the_window_closes_is_expired(site: Site, connection: Redis) -> None:
    batch_id = site.add(embedding(f"{number}", f"text {number}") for number in range(40))

    async def main() -> None:
        async with site.serving(window_jobs=16):
            await asyncio.to_thread(eventually, lambda: connection.llen("rq:queue:embedding-bulk") == 16)

    asyncio.run(main())
    site.store.change(batch_id, lambda now: now.model_copy(update={"expires_at": int(time.time()) - 1}))
    batch = site.run(batch_id)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    assert batch.request_counts.failed == 40
    assert {line["error"]["code"] for line in read(site.errors(batch))} == {"batch_expired"}
    assert connection.llen("rq:queue:embedding-bulk") == 0


def test_a_service_goes_on_where_another_was_stopped_and_asks_nothing_twice(site: Site, connection: Redis) -> None:
    held = Held("text 30")
    batch_id = site.add(embedding(f"{number}", f"text {number}") for number in range(100))

    async def first() -> None:
        async with site.serving(window_jobs=16):
            await asyncio.to_thread(held.reached.wait, 60)
        held.go_on.set()

    with working(site.redis_url, held):
        asyncio.run(first())
        assert site.store.batch(batch_id).status == "in_progress"
        batch = site.run(batch_id, window_jobs=16)
    assert (batch.status, batch.request_counts.completed) == ("completed", 100)
    assert counted(site.output(batch)) == {f"{number}": 1 for number in range(100)}
    assert set(held.asked.values()) == {1}
    assert connection.keys("rq:job:*") == []


def test_many_services_run_each_batch_once(site: Site) -> None:
    held = Held("none of these")
    ids = [site.add(embedding(f"{n}", f"{batch} {n}") for n in range(30)) for batch in range(4)]

    async def main() -> None:
        async with site.serving(), site.serving(), site.serving(at_once=1):
            await asyncio.to_thread(eventually, lambda: site.store.unfinished() == [])

    with working(site.redis_url, held):
        asyncio.run(main())
    for batch_id in ids:
        assert counted(site.output(site.store.batch(batch_id))) == {f"{number}": 1 for number in range(30)}
    assert set(held.asked.values()) == {1}
    assert len(held.asked) == 120


def test_a_batch_that_another_machine_has_is_left_alone_and_whoever_lost_it_writes_no_more(
    site: Site, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RENEW_EVERY_S", 0.0)
    batch_id = site.add([embedding("a")])
    connection.set(f"{BATCH_KEY}{batch_id}", "another machine")
    assert site.run(batch_id).status == "validating"
    connection.delete(f"{BATCH_KEY}{batch_id}")

    async def main() -> None:
        async with site.serving() as service:
            await asyncio.to_thread(eventually, lambda: connection.llen("rq:queue:embedding-bulk"))
            connection.set(f"{BATCH_KEY}{batch_id}", "another machine")
            await asyncio.to_thread(eventually, lambda: not service.is_running(batch_id))

    asyncio.run(main())
    assert connection.get(f"{BATCH_KEY}{batch_id}") == b"another machine"
    assert not (site.store.workplace(batch_id) / "output.jsonl").exists()


def test_a_job_that_is_lost_is_sent_again_and_one_that_is_cancelled_fails_alone(site: Site, connection: Redis) -> None:
    batch_id = site.add([embedding("lost", "lost"), embedding("cancelled", "cancelled"), embedding("other", "other")])

    def job_of(text: str) -> str:
        waiting: Any = connection.lrange("rq:queue:embedding-bulk", 0, -1)
        for job_id in waiting:
            data: Any = connection.hget(f"rq:job:{job_id.decode()}", "data")
            if json.loads(data)[2][0]["input"] == text:
                return str(job_id.decode())
        raise AssertionError(text)

    async def main() -> None:
        async with site.serving(), AsyncProducer(site.redis_url) as producer:
            await asyncio.to_thread(eventually, lambda: connection.llen("rq:queue:embedding-bulk") == 3)
            await producer.embedding_handle(job_of("cancelled")).cancel()
            lost = job_of("lost")
            connection.delete(f"rq:job:{lost}")
            connection.lrem("rq:queue:embedding-bulk", 0, lost)
            await asyncio.to_thread(eventually, lambda: connection.exists(f"rq:job:{lost}"))
            with working(site.redis_url):
                await asyncio.to_thread(eventually, lambda: site.store.batch(batch_id).over)

    asyncio.run(main())
    batch = site.store.batch(batch_id)
    assert set(answers(site.output(batch))) == {"lost", "other"}
    (error,) = read(site.errors(batch))
    assert (error["custom_id"], error["response"]["status_code"]) == ("cancelled", 409)


def test_a_finalization_that_was_cut_short_is_done_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = site.add([embedding("a"), embedding("b", dimensions=-1)])

    class KilledError(Exception):
        pass

    keep = BatchStore.keep_answers

    def killed(store: BatchStore, batch: Batch, path: Path, kind: str) -> str | None:
        if kind == "errors":
            raise KilledError
        return keep(store, batch, path, kind)

    with working(site.redis_url):
        monkeypatch.setattr(BatchStore, "keep_answers", killed)
        with pytest.raises(KilledError):
            site.run(batch_id)
        monkeypatch.undo()
        assert site.store.batch(batch_id).status == "finalizing"
        batch = site.run(batch_id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 1, 1)
    assert counted(site.output(batch), site.errors(batch)) == {"a": 1, "b": 1}
