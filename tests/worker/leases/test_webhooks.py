"""A webhook goes to the hosts alone that were named, and costs the worker little.

How it is sent: `tests/producer/servers/test_outgoing.py`.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rq.webhook import Webhook

from impetus_worker.allowed import NOTHING, Allowed
from impetus_worker.errors import InvalidRequestError
from impetus_worker.leases.webhooks import WebhookSender, send
from tests.patience import eventually

if TYPE_CHECKING:
    from tests.receiver import Receiver


def hooks(*urls: str) -> dict[bytes, bytes]:
    # Not by RQ's class: it refuses what a hostile job may write.
    return {b"webhooks": json.dumps([{"url": url, "job_status": "finished"} for url in urls]).encode()}


# -- who may be named ------------------------------------------------------------------------------------------------


def test_a_job_whose_webhook_goes_where_nobody_allowed_is_refused() -> None:
    allowed = Allowed(webhooks=("hooks.example", "other.example:8443"))
    allowed.check({})
    allowed.check(hooks("https://hooks.example/x", "http://HOOKS.example:80/y", "https://other.example:8443/"))
    for url in (
        "ftp://hooks.example/",
        "file://hooks.example/etc/passwd",
        "gopher://hooks.example:80/",
        "//hooks.example/",
        "http://hooks.example:81/y",
        "http://hooks.example:443/",
        "https://hooks.example:80/",
        "https://other.example:443/",
        "http://127.0.0.1:9/",
        "https://other.example/",
        "http://hooks.example@evil.example/",
        "http://hooks.example.evil.example/",
        "http://evil.example/#hooks.example",
        "http://evil.example\\@hooks.example:x/",
    ):
        with pytest.raises(InvalidRequestError, match="webhooks: "):
            allowed.check(hooks(url))
    with pytest.raises(InvalidRequestError, match="--allow-webhooks"):
        NOTHING.check(hooks("https://hooks.example/x"))


def test_an_address_of_ipv6_is_named_with_or_without_brackets_and_with_them_where_a_port_follows() -> None:
    Allowed(webhooks=("2001:db8::1",)).check(hooks("http://[2001:db8::1]/"))
    Allowed(webhooks=("[2001:db8::1]",)).check(hooks("http://[2001:db8::1]/"))
    Allowed(webhooks=("[2001:db8::1]:8080",)).check(hooks("http://[2001:db8::1]:8080/"))
    with pytest.raises(InvalidRequestError, match="HOST:PORT"):
        Allowed(webhooks=("2001:db8::1:8080",)).check(hooks("http://[2001:db8::1]:8080/"))


@pytest.mark.parametrize(
    "field", [b"x", b"{}", b"[1]", b"[" * 100_000, b'[{"url": 1}]', b"[]" + b" " * 70_000, b"\xff"]
)
def test_what_is_no_list_of_webhooks_is_refused(field: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="webhooks: "):
        Allowed(webhooks=("hooks.example",)).check({b"webhooks": field})


# -- where it goes ---------------------------------------------------------------------------------------------------


def test_a_request_is_rqs_but_for_how_it_is_sent(receiver: Receiver) -> None:
    headers = {"X-Key": "v", "Host": "elsewhere", "Content-Length": "3", "Transfer-Encoding": "chunked"}
    assert send(Webhook(receiver.url("/a?b=c"), "finished", method="POST", headers=headers), b'{"a": 1}') == 200
    (heard,) = receiver.heard
    head, _, body = heard.partition(b"\r\n\r\n")
    assert body == b'{"a": 1}'
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /a?b=c HTTP/1.1"
    assert set(lines[1:]) == {
        b"Host: 127.0.0.1:%d" % receiver.port,
        b"Accept-Encoding: identity",
        b"Content-Length: 8",
        b"Content-Type: application/json",
        b"X-Key: v",
    }


# -- the sender ------------------------------------------------------------------------------------------------------


def job(*urls: str) -> Any:
    return SimpleNamespace(
        id="job", func_name="f", enqueued_at=None, ended_at=None, webhooks=[Webhook(url, "finished") for url in urls]
    )


def test_the_sender_goes_on_after_whatever_one_webhook_does(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    sender = WebhookSender(Allowed(webhooks=(f"127.0.0.1:{receiver.port}", "no-such-host.invalid")))
    receiver.answer = lambda line: line.sendall(b"HTTP/1.1 500 No\r\n\r\n")
    sender.submit(
        job("http://elsewhere.example/", "http://no-such-host.invalid/", receiver.url("/last")), "finished", None
    )
    sender.submit(job(receiver.url("/other")), "failed", None)
    eventually(lambda: len(receiver.heard) == 1)
    sender.close(60)
    assert receiver.heard[0].startswith(b"GET /last ")
    for said in ("not told to send requests to 'elsewhere.example'", "its webhook was not sent", "answered 500"):
        assert said in caplog.text
