"""Where a gateway listens, and what it insists on before it does."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impetus_producer.errors import ImpetusError, InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path

BACKLOG_CONNECTIONS = 2048


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `port` 0: any that is free."""

    host: str = "127.0.0.1"
    port: int = 8000
    certfile: Path | None = None
    keyfile: Path | None = None

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.certfile is None else 'https'}://{host}:{port}"

    def open(self) -> socket.socket:
        """Raises `ImpetusError` where it cannot be listened there."""
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with ExitStack() as closing:
                listening = closing.enter_context(socket.socket(family, kind, protocol))
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(place)
                listening.listen(BACKLOG_CONNECTIONS)
                closing.pop_all()
        except OSError as error:
            raise ImpetusError(f"{self.host}:{self.port} cannot be listened at: {error.strerror or error}") from None
        return listening

    def check(self, *, keys_needed: bool, without_keys: bool) -> None:
        """Raises `InvalidRequestError` where others would be let in whom nobody knows."""
        if not self.is_loopback and not keys_needed and not without_keys:
            raise InvalidRequestError(
                f"{self.host} can be reached from other machines, and no keys are asked for: give --keys FILE, or "
                "--without-keys if whoever reaches it may use it"
            )
