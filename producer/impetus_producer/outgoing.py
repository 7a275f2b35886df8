"""Requests to hosts that an operator named: webhooks. What answers is read no farther than its status.

A request reaches no farther than its host's name: not to addresses inside the machine behind that name, not where a
redirect points to, and not for longer than a while.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

_METADATA = tuple(
    ipaddress.ip_network(each)
    for each in (
        "169.254.169.254/32",  # EC2, Azure, Google, OCI and others: "Instance metadata" in the manual of each
        "169.254.170.2/32",  # Amazon ECS, "Task metadata endpoint", and the credentials of tasks
        "169.254.170.23/32",  # Amazon EKS, "EKS Pod Identity", and fd00:ec2::23
        "fd00:ec2::/32",  # Amazon EC2 User Guide, "Access instance metadata": fd00:ec2::254; clock and names beside it
        "fd20:ce::254/128",  # Google Compute Engine, "VM metadata", on machines with IPv6 alone
        "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud Infrastructure, "Getting Instance Metadata"
        "192.0.0.192/32",  # Oracle Cloud Infrastructure Compute Classic, "Retrieving Instance Metadata"
        "100.100.100.200/32",  # Alibaba Cloud ECS, "Instance metadata"; cloud-init's data source AliYun
        "168.63.129.16/32",  # Azure, "What is IP address 168.63.129.16?": it hands out a machine's certificates
        "169.254.42.42/32",  # Scaleway, "Instance user data", and the next
        "fd00:42::42/128",
    )
)
"""Where clouds tell a machine its secrets. Not all are link-local, and none is where anybody takes webhooks."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
"""Headers that say how a request is sent, which is not for whoever has it sent to say."""


def send(method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> int:
    """Sends one request and returns the status of the answer. `timeout_s`: from the lookup of the host's name to the
    answer's first lines.

    Raises `OSError`, `HTTPException` or `ValueError` for what goes wrong, and `InvalidRequestError` where the host is
    at an address where a host of that name should not be.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    deadline = time.monotonic() + timeout_s
    line = _connected(_addresses(host, port), deadline)
    connection = HTTPConnection(host, port)
    connection.sock = line
    # A receiver that sends a byte now and then would never run into the time-out of a socket.
    limit = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (connection,))
    limit.start()
    try:
        if secure:
            connection.sock = line = _tls().wrap_socket(line, server_hostname=host, do_handshake_on_connect=False)
            line.do_handshake()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {name: value for name, value in headers.items() if name.lower() not in _OURS}
        connection.request(method, path, body, sent)
        return connection.getresponse().status
    finally:
        limit.cancel()
        connection.close()


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    """Where a host is. Whoever keeps its name chooses its address, so none is this machine or its link's, unless it was
    such an address, or `localhost`, that the operator allowed; and none is a cloud's metadata service in any case.
    Private networks (RFC 1918, fc00::/7) are where an operator's own receivers are."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    named = host == "localhost" or _is_address(host)
    for *_, address in found:
        for ip in _meant(str(address[0]).partition("%")[0]):
            if any(ip in network for network in _METADATA):
                raise InvalidRequestError(f"{host!r} is at {ip}, which is a cloud's metadata service")
            inside = ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip.is_reserved
            if inside and not named:
                raise InvalidRequestError(f"{host!r} is at {ip}, which is inside this machine or its link")
    return [(family, address) for family, _, _, _, address in found]


def _meant(address: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Whom a request to this address reaches: the IPv4 addresses that one of IPv6 carries, or itself.

    A network's own prefix for NAT64 cannot be told from any other, and the one for local use (RFC 8215) says not where
    the address stands: that is reserved, as it is."""
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return [ip]
    if ip in _NAT64:  # RFC 6052
        return [ipaddress.IPv4Address(ip.packed[-4:])]
    if ip.teredo is not None:
        return list(ip.teredo)
    carried = ip.ipv4_mapped or ip.sixtofour
    return [ip if carried is None else carried]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _connected(addresses: list[tuple[socket.AddressFamily, tuple[object, ...]]], deadline: float) -> socket.socket:
    failure: OSError = OSError("the host has no address")
    for family, address in addresses:
        line = socket.socket(family, socket.SOCK_STREAM)
        try:
            line.settimeout(max(0.01, deadline - time.monotonic()))
            line.connect(address)
        except OSError as error:
            line.close()
            failure = error
        else:
            return line
    raise failure


def _cut(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # it may be closed at this moment
        connection.sock.shutdown(socket.SHUT_RDWR)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
