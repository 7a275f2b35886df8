"""Files and batches through the `openai` package, unchanged."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from impetus_gateway.callers import Keys, Role, _Entry
from impetus_producer.batches.store import BatchStore
from tests.worker.conftest import eventually

from .serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai.types import Batch

    from tests.worker.conftest import Fleet

    from .serving import Serving

pytestmark = pytest.mark.system
LIMIT_S = 60.0


def line(custom_id: str, body: Any, url: str = "/v1/embeddings") -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def uploaded(client: openai.OpenAI, lines: str) -> str:
    return client.files.create(file=("in.jsonl", lines.encode()), purpose="batch").id


def over(client: openai.OpenAI, batch_id: str) -> Batch:
    def look() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    found = eventually(look, LIMIT_S)
    assert found is not None
    return found


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    return {each["custom_id"]: each for each in map(json.loads, client.files.content(file_id).text.splitlines())}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BatchStore:
    return BatchStore(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def kept(fleet: Fleet, store: BatchStore) -> Iterator[Serving]:
    with serving(fleet.url, store=store) as running:
        yield running


@pytest.fixture
def client(kept: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{kept.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_batch_of_embeddings_answers_each_line_or_says_why_not(client: openai.OpenAI, kept: Serving) -> None:
    texts = ["one", "two and a half", "three"]
    lines = "".join(line(text, {"model": "simulated", "input": text}) for text in texts)
    file_id = uploaded(client, lines + line("bad", {"model": "simulated", "input": "x", "dimensions": -1}))
    batch = client.batches.create(
        input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h", metadata={"whose": "mine"}
    )
    assert (batch.status, batch.metadata) == ("validating", {"whose": "mine"})
    batch = over(client, batch.id)
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 4, 3, 1)
    expected = np.asarray(kept.producer.embed(texts).result(30).vectors)
    found = answers(client, batch.output_file_id)
    for text, vector in zip(texts, expected, strict=True):
        body = CreateEmbeddingResponse.model_validate(found[text]["response"]["body"], strict=True)
        assert np.asarray(body.data[0].embedding, dtype=np.float32).tobytes() == vector.tobytes()
    refused = answers(client, batch.error_file_id)
    assert "dimensions" in json.dumps(refused["bad"])
    assert found.keys() | refused.keys() == {*texts, "bad"}


def test_a_batch_of_chats_has_whole_completions(client: openai.OpenAI) -> None:
    chat = {"model": "simulated", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 5}
    file_id = uploaded(client, line("a", chat, "/v1/chat/completions"))
    batch = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    found = answers(client, over(client, batch.id).output_file_id)
    assert ChatCompletion.model_validate(found["a"]["response"]["body"]).choices[0].message.content


def test_lines_that_are_none_fail_the_batch_and_are_named_by_number(client: openai.OpenAI) -> None:
    file_id = uploaded(client, line("a", {"input": "x"}) + "{\n" + line("a", {"input": "y"}))
    batch = over(
        client,
        client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h").id,
    )
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [error.line for error in batch.errors.data or []] == [2, 3]


def test_files_are_listed_in_pages_shown_and_deleted(client: openai.OpenAI) -> None:
    made = [uploaded(client, line(str(number), {"input": "x"})) for number in range(3)]
    assert [file.id for file in client.files.list(limit=2)][:3] == made[::-1]
    first = client.files.retrieve(made[0])
    assert (first.filename, first.purpose, first.bytes) == ("in.jsonl", "batch", len(line("0", {"input": "x"})))
    assert client.files.content(made[0]).text == line("0", {"input": "x"})
    assert client.files.delete(made[0]).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.files.retrieve(made[0])


def test_what_cannot_be_is_refused_with_its_field_named(client: openai.OpenAI, kept: Serving) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose") as refused:
        client.files.create(file=("x", b"{}"), purpose="assistants")
    assert refused.value.param == "purpose"
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h")
    file_id = uploaded(client, line("a", {"input": "x"}))
    for more, field in (
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1y"}, "completion_window"),
    ):
        body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **more}
        answer = kept.post("/v1/batches", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    for path in ("/v1/files?limit=0", "/v1/files?order=up", "/v1/batches?limit=101"):
        assert kept.client.get(path).status_code == 400
    for path in ("/v1/files/..%2f..%2fx", "/v1/files/file-x/content", "/v1/batches/batch_x"):
        assert kept.client.get(path).status_code == 404
    assert kept.client.post("/v1/files", content=b"no form").status_code == 400
    assert (
        kept.client.post("/v1/files", content=b"--x", headers={"content-type": "multipart/form-data"}).status_code
        == 400
    )


def test_a_file_that_is_too_large_is_refused_before_it_is_read_whole(kept: Serving) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(400):
            yield bytes(1 << 20)

    head = {"content-type": "multipart/form-data; boundary=x"}
    answer = kept.client.post("/v1/files", content=endless(), headers=head)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_batch_is_cancelled_and_a_restarted_gateway_goes_on_with_another(fleet: Fleet, store: BatchStore) -> None:
    many = "".join(line(str(number), {"model": "simulated", "input": f"text {number}"}) for number in range(2000))
    with serving(fleet.url, store=store) as first:
        client = openai.OpenAI(base_url=f"{first.url}/v1", api_key="none")
        file_id = uploaded(client, many)
        stopped, going = (
            client.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h")
            for _ in range(2)
        )
        assert client.batches.cancel(stopped.id).status == "cancelling"
        assert over(client, stopped.id).status == "cancelled"
        client.close()
    with serving(fleet.url, store=store) as second:
        client = openai.OpenAI(base_url=f"{second.url}/v1", api_key="none")
        batch = over(client, going.id)
        assert batch.request_counts is not None
        assert (batch.status, batch.request_counts.completed) == ("completed", 2000)
        lines = client.files.content(batch.output_file_id or "").text.splitlines()
        assert sorted(json.loads(each)["custom_id"] for each in lines) == sorted(map(str, range(2000)))
        client.close()


def test_one_keys_files_and_batches_are_not_anothers(fleet: Fleet, tmp_path: Path) -> None:
    def entry(name: str, *roles: Role) -> _Entry:
        return _Entry(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), roles=frozenset(roles))

    keys = Keys([entry("ann", Role.SUBMIT, Role.READ), entry("bob", Role.SUBMIT, Role.READ), entry("op", *Role)])
    with serving(fleet.url, keys, store=BatchStore(tmp_path)) as shared:
        ann, bob, op = (
            openai.OpenAI(base_url=f"{shared.url}/v1", api_key=name, max_retries=0) for name in ("ann", "bob", "op")
        )
        file_id = uploaded(ann, line("a", {"input": "x"}))
        batch = ann.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h")
        assert not list(bob.files.list())
        assert not list(bob.batches.list())
        for ask in (
            lambda: bob.files.content(file_id),
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.batches.create(input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        done = over(op, batch.id)
        assert answers(ann, done.output_file_id).keys() == {"a"}
        with pytest.raises(openai.NotFoundError):
            bob.files.content(done.output_file_id or "")
        for each in (ann, bob, op):
            each.close()


def test_a_gateway_without_files_says_so(fleet: Fleet) -> None:
    with serving(fleet.url) as without:
        answer = without.client.get("/v1/batches")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_files")
