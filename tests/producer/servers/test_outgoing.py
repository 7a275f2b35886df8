"""A request reaches no farther than the host that was named, and what is at the other end costs little."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from http.client import HTTPException
from typing import TYPE_CHECKING

import pytest

from impetus_producer import outgoing
from impetus_producer.errors import InvalidRequestError
from impetus_producer.outgoing import send

if TYPE_CHECKING:
    from pathlib import Path

    from tests.receiver import Receiver


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
        send("POST", "http://hooks.example/", b"", {}, 10)


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
        outgoing._addresses(address if named else "hooks.example", 80)


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
    assert outgoing._addresses("hooks.example", 80) == [(family, (address, 80))]


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    elsewhere = receiver.url("/secret").encode()
    receiver.answer = lambda line: line.sendall(b"HTTP/1.1 302 Found\r\nLocation: %s\r\n\r\n" % elsewhere)
    assert send("POST", receiver.url(), b"{}", {}, 10) == 302
    assert len(receiver.heard) == 1


@pytest.mark.parametrize("header", ["a\r\nb", "a\nHost: x"])
def test_a_header_that_is_more_than_one_is_not_sent(receiver: Receiver, header: str) -> None:
    with pytest.raises(ValueError, match="header"):
        send("POST", receiver.url(), b"{}", {"X": header}, 10)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made by openssl, which is not here")
def test_tls_is_checked(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = receiver.speak_tls(tmp_path)
    url = receiver.url(host="localhost").replace("http:", "https:")
    with pytest.raises(ssl.SSLCertVerificationError):
        send("POST", url, b"{}", {}, 10)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(outgoing, "_tls", lambda: trusting)
    assert send("POST", url, b"{}", {}, 10) == 200


def test_a_receiver_that_sends_a_byte_now_and_then_is_given_up(receiver: Receiver) -> None:
    def drip(line: socket.socket) -> None:
        never = threading.Event()
        while True:
            line.sendall(b"H")
            never.wait(0.05)

    receiver.answer = drip
    with pytest.raises((OSError, HTTPException)):
        send("POST", receiver.url(), b"{}", {}, 1)
