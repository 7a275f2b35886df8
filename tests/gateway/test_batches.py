"""Files and batches by OpenAI's own client: what goes in comes out, once, whoever dies meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from impetus_gateway.entry.callers import Keys, Role, new_key
from tests.patience import eventually

from .serving import Serving, is_ready, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.worker.conftest import Fleet

pytestmark = pytest.mark.system


def line(number: int, url: str = "/v1/embeddings", **body: Any) -> str:
    asked = body or {"input": f"text {number}"}
    return json.dumps({"custom_id": f"id-{number}", "method": "POST", "url": url, "body": asked})


@pytest.fixture(scope="module")
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def sent(client: openai.OpenAI, lines: list[str], endpoint: Any = "/v1/embeddings") -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"whose": "test"}
    )


def ended(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    def look() -> openai.types.Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    batch = eventually(look)
    assert batch is not None
    return batch


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    found = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    assert len({each["custom_id"] for each in found}) == len(found)
    return {each["custom_id"]: each for each in found}


def test_a_batch_is_answered_line_by_line_and_a_bad_line_fails_alone(client: openai.OpenAI) -> None:
    batch = sent(client, [*map(line, range(20)), line(20, input=[]), line(21, input="x", dimensions=5000)])
    done = ended(client, batch.id)
    assert (done.status, done.metadata) == ("completed", {"whose": "test"})
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (22, 20, 2)
    answers = lines_of(client, done.output_file_id)
    assert set(answers) == {f"id-{number}" for number in range(20)}
    single = client.embeddings.create(input="text 3", model="simulated", encoding_format="float").data[0].embedding
    assert answers["id-3"]["response"]["body"]["data"][0]["embedding"] == single
    assert set(lines_of(client, done.error_file_id)) == {"id-20", "id-21"}


def test_chats_are_answered_too(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Go on."}]
    chats = [line(number, "/v1/chat/completions", messages=messages, seed=number) for number in range(3)]
    done = ended(client, sent(client, chats, "/v1/chat/completions").id)
    for answer in lines_of(client, done.output_file_id).values():
        assert answer["response"]["body"]["choices"][0]["message"]["content"].startswith("[simulated]")


def test_what_is_no_input_fails_with_its_line(client: openai.OpenAI) -> None:
    failed = ended(client, sent(client, [line(0), "{", line(0)]).id)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert [each.line for each in failed.errors.data or ()] == [2, 3]


def test_files_and_batches_are_listed_and_deleted(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{number}.jsonl", b"{}"), purpose="batch").id for number in range(3)]
    listed = [each.id for each in client.files.list(limit=2)]
    assert listed[:3] == made[::-1]
    assert client.files.retrieve(made[0]).filename == "0.jsonl"
    assert client.files.content(made[0]).content == b"{}"
    assert client.files.delete(made[0]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0])
    ids = [sent(client, [line(0)]).id for _ in range(2)]
    assert [each.id for each in client.batches.list(limit=1)][:2] == ids[::-1]


def test_files_say_when_they_expire(client: openai.OpenAI) -> None:
    after: Any = {"anchor": "created_at", "seconds": 7200}
    file = client.files.create(file=("in.jsonl", line(0).encode()), purpose="batch", expires_after=after)
    assert file.expires_at == file.created_at + 7200
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", output_expires_after=after
    )
    output = client.files.retrieve(str(ended(client, batch.id).output_file_id))
    assert output.expires_at == output.created_at + 7200
    for wrong, param in (
        ({"anchor": "created_at", "seconds": 60}, "expires_after.seconds"),
        ({"anchor": "last_active_at", "seconds": 7200}, "expires_after.anchor"),
        ({"seconds": 7200}, "expires_after.anchor"),
        ({"anchor": "created_at", "seconds": 7200, "days": 3}, "expires_after.days"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=("in.jsonl", b"x"), purpose="batch", expires_after=wrong)  # type: ignore[arg-type]
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"a": "b" * 600}}, "metadata"),
        ({"input_file_id": 3}, "input_file_id"),
        ({"foo": 1}, "foo"),
    ],
)
def test_what_is_wrong_with_a_batch_is_told_by_its_field(served: Serving, fields: Any, param: str) -> None:
    body = {"input_file_id": "file-0", "endpoint": "/v1/embeddings", "completion_window": "24h"} | fields
    refused = served.post("/v1/batches", body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert served.post("/v1/batches", {"input_file_id": "file-0", "endpoint": "/v1/embeddings"}).status_code == 404


def test_what_is_no_form_with_a_file_is_refused(served: Serving) -> None:
    ask = served.client.post
    assert ask("/v1/files", json={}).status_code == 400
    assert ask("/v1/files", files={"file": b"x"}).json()["error"]["param"] == "purpose"
    assert ask("/v1/files", data={"purpose": "batch", "file": "x"}).json()["error"]["param"] == "file"
    assert ask("/v1/files", content=b"--x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ask("/v1/files", content=b"nonsense" * 100, headers=broken).status_code == 400
    for query in ("limit=0", "limit=x", "limit=999999", "order=up"):
        assert served.client.get(f"/v1/files?{query}").status_code == 400


def test_a_file_is_kept_to_its_size_whatever_it_announces(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impetus_gateway.api.files.MAX_BYTES", 1000)
    file = {"file": ("x", b"x" * 300_000)}
    assert served.client.post("/v1/files", data={"purpose": "batch"}, files=file).status_code == 413


def test_a_batch_is_cancelled(client: openai.OpenAI, served: Serving) -> None:
    long = {"messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True, "max_tokens": 5000}
    batch = sent(client, [line(number, "/v1/chat/completions", **long) for number in range(4)], "/v1/chat/completions")
    eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert ended(client, batch.id).status == "cancelled"
    eventually(lambda: not served.producer.connection.zcard("rq:wip:generation-bulk"))


def test_another_gateway_on_the_same_folder_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    with serving(fleet.url, files=folder) as first:
        eventually(lambda: is_ready(first, "embedding"))
        with openai.OpenAI(base_url=f"{first.url}/v1", api_key="none") as client:
            fleet.connection.set("rq:suspended", 1)
            batch = sent(client, [*map(line, range(50))])
            eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    fleet.connection.delete("rq:suspended")
    with (
        serving(fleet.url, files=folder) as second,
        openai.OpenAI(base_url=f"{second.url}/v1", api_key="none") as client,
    ):
        done = ended(client, batch.id)
        assert done.status == "completed"
        assert set(lines_of(client, done.output_file_id)) == {f"id-{number}" for number in range(50)}


def test_nobody_sees_the_files_and_batches_of_another_key(fleet: Fleet, tmp_path: Path) -> None:
    made = {name: new_key(name, roles) for name, roles in (
        ("shop", [Role.SUBMIT, Role.READ]), ("blog", [Role.SUBMIT, Role.READ]), ("boss", list(Role)))}  # fmt: skip
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(entry for _, entry in made.values()))
    with serving(fleet.url, Keys.read(path)) as guarded:
        clients = {
            name: openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
            for name, (key, _) in made.items()
        }
        batch = sent(clients["shop"], [line(0)])
        output = str(ended(clients["shop"], batch.id).output_file_id)
        asks: list[Callable[[openai.OpenAI], Any]] = [
            lambda client: client.files.retrieve(batch.input_file_id),
            lambda client: client.files.content(output),
            lambda client: client.files.delete(batch.input_file_id),
            lambda client: client.batches.retrieve(batch.id),
            lambda client: client.batches.cancel(batch.id),
            lambda client: client.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/embeddings", completion_window="24h"
            ),
        ]
        for ask in asks:
            with pytest.raises(openai.NotFoundError):
                ask(clients["blog"])
        assert not list(clients["blog"].files.list())
        assert not list(clients["blog"].batches.list())
        assert [each.id for each in clients["boss"].batches.list()] == [batch.id]
        for client in clients.values():
            client.close()
        unknown = httpx.get(f"{guarded.url}/v1/files", trust_env=False)
        assert unknown.status_code == 401
