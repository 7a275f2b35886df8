"""Whoever the operator listed is told when a batch ends, signed, and once; whoever dies or is away meanwhile."""

from __future__ import annotations

import json
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from click.testing import CliRunner
from standardwebhooks import Webhook

from impetus_gateway import webhooks
from impetus_gateway.webhooks import Receiver, Webhooks, new_receiver, read_receivers
from impetus_producer.batches.store import BatchStore
from impetus_producer.cli.main import cli
from impetus_producer.errors import InvalidRequestError
from tests.patience import eventually

from .serving import serving, stock_worker

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from impetus_producer.batches.objects import Batch, Status
    from tests.receiver import Receiver as Listener

SECRET = "whsec_" + "ab" * 22
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "tea"}}


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(tmp_path / "files")


def listed(to: Listener, **fields: Any) -> Receiver:
    return Receiver(url=to.url("/batches"), secrets=(SECRET,), **fields)


def added(store: BatchStore, owner: str = "") -> Batch:
    file = store.add_file([json.dumps(LINE).encode()], "in.jsonl", owner=owner)
    return store.add_batch(file.id, "/v1/embeddings", owner=owner)


def ended(store: BatchStore, hooks: Webhooks, status: Status = "completed", owner: str = "") -> Batch:
    batch = added(store, owner)
    hooks.note(batch, status)
    return store.change(batch.id, lambda now: now.now(status))


def answering(*statuses: int) -> Any:
    left = list(statuses)

    def answer(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 %d X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n" % left.pop(0))

    return answer


def told(heard: bytes, secret: str = SECRET) -> Any:
    """The event, once OpenAI's client and Standard Webhooks' library have found it to be signed."""
    head, _, body = heard.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert Webhook(secret).verify(body, headers)["data"]
    with openai.OpenAI(api_key="none") as client:
        return client.webhooks.unwrap(body, headers, secret=secret), headers["webhook-id"]


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
def test_how_a_batch_ended_is_told_and_signed(store: BatchStore, receiver: Listener, status: Status) -> None:
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    batch = ended(store, hooks, status)
    hooks.attempt(to)
    (event, event_id), *more = map(told, receiver.heard)
    assert (event.type, event.data.id, event.id) == (f"batch.{status}", batch.id, event_id)
    hooks.attempt(to)
    assert (more, len(receiver.heard), list((store.folder / "webhooks").iterdir())) == ([], 1, [])


def test_nothing_is_told_before_it_is_so(store: BatchStore, receiver: Listener) -> None:
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    batch = added(store)
    hooks.note(batch, "completed")
    hooks.attempt(to)
    assert receiver.heard == []
    hooks.note(batch, "completed")  # as whoever goes on after a crash does
    store.change(batch.id, lambda now: now.now("completed"))
    hooks.attempt(to)
    assert len(receiver.heard) == 1


def test_only_those_are_told_who_asked_for_this_end_of_these_batches(store: BatchStore, receiver: Listener) -> None:
    to = listed(receiver, keys=["shop"], events=["batch.failed"])
    hooks = Webhooks(store, [to])
    ends: list[tuple[Status, str]] = [("completed", "shop"), ("failed", "blog"), ("failed", "shop")]
    *_, wanted = [ended(store, hooks, status, owner) for status, owner in ends]
    hooks.attempt(to)
    (heard,) = receiver.heard
    assert told(heard)[0].data.id == wanted.id


@pytest.mark.parametrize("failing", [302, 500, 429])
def test_what_was_not_taken_is_told_again_later_by_the_same_id_whoever_comes_next(
    store: BatchStore, receiver: Listener, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_AGAIN_AFTER_S", (0, 3600, 3600))
    receiver.answer = answering(failing, failing, 200)
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    ended(store, hooks)
    for _ in range(3):
        hooks.attempt(to)
    Webhooks(store, [to]).attempt(to)
    assert len(receiver.heard) == 2
    Webhooks(store, [to], clock=lambda: time.time() + 2 * 3600).attempt(to)
    assert len(receiver.heard) == 3
    assert all(heard.startswith(b"POST /batches ") for heard in receiver.heard)
    ids = {line for heard in receiver.heard for line in heard.split(b"\r\n") if line.startswith(b"webhook-id")}
    assert len(ids) == 1
    assert not list((store.folder / "webhooks").iterdir())


@pytest.mark.parametrize(("answers", "attempts"), [((410,), 1), ((500, 500, 500), 3)])
def test_it_is_given_up_where_nobody_is_there_any_more_and_after_the_last_attempt(
    store: BatchStore, receiver: Listener, answers: tuple[int, ...], attempts: int,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(webhooks, "_AGAIN_AFTER_S", (0, 0))
    receiver.answer = answering(*answers)
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    ended(store, hooks)
    for _ in range(attempts + 1):
        hooks.attempt(to)
    assert len(receiver.heard) == attempts
    assert "is given up" in caplog.text


def test_two_gateways_do_not_tell_it_at_the_same_time(store: BatchStore, receiver: Listener) -> None:
    go_on = threading.Event()

    def slowly(line: socket.socket) -> None:
        assert go_on.wait(60)
        line.sendall(b"HTTP/1.1 204 X\r\n\r\n")

    receiver.answer = slowly
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    ended(store, hooks)
    first = threading.Thread(target=hooks.attempt, args=(to,))
    first.start()
    eventually(lambda: receiver.heard)
    Webhooks(store, [to]).attempt(to)
    go_on.set()
    first.join()
    Webhooks(store, [to]).attempt(to)
    assert len(receiver.heard) == 1


@pytest.mark.parametrize(
    "left", [b"", b'{"attem', b"[1]", b'{"attempts": -3, "not_before": "soon"}', b'{"attempts": 99}']
)
def test_what_a_crash_left_half_written_is_told(store: BatchStore, receiver: Listener, left: bytes) -> None:
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    ended(store, hooks)
    (note,) = (store.folder / "webhooks").iterdir()
    note.write_bytes(left)
    hooks.attempt(to)
    assert len(receiver.heard) == 1


def test_a_batch_that_cannot_be_read_keeps_nobody_from_hearing_of_the_others(
    store: BatchStore, receiver: Listener
) -> None:
    to = listed(receiver)
    hooks = Webhooks(store, [to])
    broken, whole = ended(store, hooks), ended(store, hooks)
    (store.folder / "batches" / f"{broken.id}.json").write_text("{")
    hooks.attempt(to)
    (heard,) = receiver.heard
    assert told(heard)[0].data.id == whole.id


def test_each_of_several_secrets_signs_so_that_one_can_follow_another(store: BatchStore, receiver: Listener) -> None:
    other, _ = new_receiver("https://x.example/")
    to = Receiver(url=receiver.url(), secrets=(SECRET, other))
    hooks = Webhooks(store, [to])
    ended(store, hooks)
    hooks.attempt(to)
    assert told(receiver.heard[0], SECRET) == told(receiver.heard[0], other)


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ('url = "ftp://x.example/"', "webhooks.0.url: "),
        ('url = "https://u:p@x.example/"', "webhooks.0.url: "),
        ('url = "https://x.example:port/"', "webhooks.0.url: "),
        ('url = "x.example"', "webhooks.0.url: "),
        ('secrets = ["whsec_c2hvcnQ="]', "webhooks.0.secrets.0: "),
        ('secrets = ["not base64"]', "webhooks.0.secrets.0: "),
        ("secrets = []", "webhooks.0.secrets: "),
        ('events = ["batch.begun"]', "webhooks.0.events"),
        ('host = "x.example"', "webhooks.0.host: there is no such field"),
        ("nothing", "cannot be read as a file of webhooks"),
    ],
)
def test_a_file_of_webhooks_is_read_strictly(tmp_path: Path, entry: str, wrong: str) -> None:
    fields = {"url": 'url = "https://x.example/"', "secrets": f'secrets = ["{SECRET}"]'}
    fields[entry.partition(" ")[0]] = entry
    path = tmp_path / "webhooks.toml"
    path.write_text("[[webhooks]]\n" + "\n".join(fields.values()))
    with pytest.raises(InvalidRequestError, match=wrong):
        read_receivers(path)


def test_a_command_lists_a_receiver_and_prints_its_secret(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.toml"

    def add(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["serve-webhook", *arguments, "--webhooks", str(path)])

    made = [add("https://a.example/"), add("https://b.example/x?y=1", "--key", "shop", "--event", "batch.failed")]
    first, second = read_receivers(path)
    assert [each.stdout.strip() for each in made] == [first.secrets[0], second.secrets[0]]
    assert second.url == "https://b.example/x?y=1"
    assert (set(second.keys or ()), set(second.events or ())) == ({"shop"}, {"batch.failed"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert "the same url is there twice" in add("https://a.example/").stderr
    assert "url: " in add("file:///etc/passwd").stderr
    assert path.read_text() == before


@pytest.mark.system
def test_a_gateway_tells_of_its_batches_and_the_next_goes_on_where_it_did_not(
    redis_url: str, tmp_path: Path, receiver: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(webhooks, "_AGAIN_AFTER_S", (0,) * 1000)
    down = threading.Event()

    def refuse(line: socket.socket) -> None:
        down.set()
        answering(503)(line)

    receiver.answer = refuse
    to = [listed(receiver)]
    with stock_worker(redis_url), serving(redis_url, files=tmp_path, receivers=to) as first:
        file = first.client.post("/v1/files", data={"purpose": "batch"}, files={"file": json.dumps(LINE).encode()})
        body = {"input_file_id": file.json()["id"], "endpoint": LINE["url"]}
        batch = first.client.post("/v1/batches", json=body).json()
        assert down.wait(60)
    receiver.answer = answering(200)
    before = len(receiver.heard)
    with serving(redis_url, files=tmp_path, receivers=to):
        eventually(lambda: not list((tmp_path / "webhooks").iterdir()))
    (event, event_id) = told(receiver.heard[-1])
    assert (event.type, event.data.id) == ("batch.completed", batch["id"])
    assert (len(receiver.heard) - before, {told(each)[1] for each in receiver.heard}) == (1, {event_id})
