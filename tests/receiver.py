"""A receiver of webhooks on loopback."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
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
                    if not (more := line.recv(65536)):
                        return  # it went away before it had said all
                    said += more
                self.heard.append(said)
                self.answer(line)
        except OSError:
            pass

    def speak_tls(self, folder: Path) -> Path:
        """With a certificate of its own for `localhost`, which it leaves in the folder."""
        key, certificate = folder / "key", folder / "certificate"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
             "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            check=True, capture_output=True,
        )  # fmt: skip
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate, key)
        self.wrap = lambda line: server.wrap_socket(line, server_side=True)
        return certificate

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # else whoever waits at it waits for ever
        self._door.close()
