"""A webhook reaches the hosts that were named and no farther, and what is at the other end costs the worker little."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import closing
from http.client import HTTPException
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from rq.webhook import Webhook

from impetus_worker.allowed import NOTHING, Allowed
from impetus_worker.errors import InvalidRequestError
from impetus_worker.leases import webhooks
from impetus_worker.leases.webhooks import WebhookSender, send

from .conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Receiver:
    """Takes requests on loopback and answers as told."""

    def __init__(self) -> None:
        self.answer: Callable[[socket.socket], None] = lambda line: line.sendall(OK)
        self.heard: list[bytes] = []
        self.wrap: Callable[[socket.socket], socket.socket] = lambda line: line
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(line,), daemon=True).start()

    def _take(self, line: socket.socket) -> None:
        try:
            with self.wrap(line) as line:
                said = b""
                while b"\r\n\r\n" not in said or (said.startswith(b"POST") and not said.endswith(b"}")):
                    said += line.recv(65536)
                self.heard.append(said)
                self.answer(line)
        except OSError:
            pass

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self._door.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with closing(Receiver()) as it:
        yield it


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


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "::1", "169.254.1.1", "0.0.0.0", "fe80::1%lo", "::ffff:127.0.0.1", "224.0.0.1", "::127.0.0.1"),
        *("2002:7f00:1::", "2002:a9fe:101::1"),  # 6to4
        *("2001:0:7f00:1::1", "2001:0:808:808::80ff:fffe"),  # Teredo: its server, and the client
        *("64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808"),  # NAT64
    ],
)
def test_a_name_that_leads_inside_the_machine_is_not_followed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 0, 0, "", (address, 80))])
    with pytest.raises(InvalidRequestError, match="inside this machine"):
        send(Webhook("http://hooks.example/", "finished"), b"")


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
        *("::ffff:168.63.129.16", "2002:6464:64c8::", "64:ff9b::a83f:8110", "2001:0:a83f:8110::1"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_clouds_metadata_is_not_asked_even_where_its_address_was_named(
    address: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 0, 0, "", (address, 80))])
    with pytest.raises(InvalidRequestError, match="metadata"):
        webhooks._addresses(address if named else "hooks.example", 80)


@pytest.mark.parametrize(
    "address",
    [
        *("192.0.2.7", "10.0.0.5", "192.168.1.1", "100.64.0.1", "fd12::1"),
        *("::ffff:93.184.216.34", "2606:2800:220:1::1", "2002:5db8:d822::1", "64:ff9b::5db8:d822"),
    ],
)
def test_a_name_that_leads_elsewhere_is_followed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 0, 0, "", (address, 80))])
    assert webhooks._addresses("hooks.example", 80) == [(family, (address, 80))]


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    elsewhere = receiver.url("/secret").encode()
    receiver.answer = lambda line: line.sendall(b"HTTP/1.1 302 Found\r\nLocation: %s\r\n\r\n" % elsewhere)
    assert send(Webhook(receiver.url(), "finished"), b"") == 302
    assert len(receiver.heard) == 1


@pytest.mark.parametrize("header", ["a\r\nb", "a\nHost: x"])
def test_a_header_that_is_more_than_one_is_not_sent(receiver: Receiver, header: str) -> None:
    with pytest.raises(ValueError, match="header"):
        send(Webhook(receiver.url(), "finished", headers={"X": header}), b"")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl, which is not here")
def test_tls_is_checked(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    receiver.wrap = lambda line: server.wrap_socket(line, server_side=True)
    url = receiver.url(host="localhost").replace("http:", "https:")
    with pytest.raises(ssl.SSLCertVerificationError):
        send(Webhook(url, "finished"), b"")
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(webhooks, "_tls", lambda: trusting)
    assert send(Webhook(url, "finished"), b"") == 200


def test_a_receiver_that_sends_a_byte_now_and_then_is_given_up(receiver: Receiver) -> None:
    def drip(line: socket.socket) -> None:
        never = threading.Event()
        while True:
            line.sendall(b"H")
            never.wait(0.05)

    receiver.answer = drip
    with pytest.raises((OSError, HTTPException)):
        send(Webhook(receiver.url(), "finished", timeout=1), b"")


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
