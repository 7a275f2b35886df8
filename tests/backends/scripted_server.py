"""A server that speaks OpenAI's API as a test wants it to, on a loopback port."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 20.0


class Asked(BaseHTTPRequestHandler):
    """One request, and the means to answer it."""

    server: ScriptedServer
    body: dict[str, Any]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Says nothing."""

    def do_GET(self) -> None:
        self.body = {}
        self.server.list_models(self)

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.put(self)
        try:
            self.server.script(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.broken.set()

    def head(self, status: int = 200, kind: str = "text/event-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def answer(self, status: int, value: Any) -> None:
        """A whole body: JSON, or text as it is."""
        self.head(status, "application/json")
        self.wfile.write((value if isinstance(value, str) else json.dumps(value)).encode())

    def event(self, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def delta(self, index: int = 0, finish_reason: str | None = None, **delta: Any) -> None:
        self.event({"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]})

    def usage(self, prompt: int, completion: int, **details: Any) -> None:
        self.event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **details}})
        self.event("[DONE]")

    def until_closed(self) -> None:
        """Waits until the client has closed the connection."""
        self.connection.settimeout(LIMIT_S)
        with contextlib.suppress(ConnectionResetError):
            assert self.connection.recv(1) == b""
        self.server.closed.release()


class ScriptedServer(ThreadingHTTPServer):
    """Answers each POST by `script`; notes who asked, and whose connection was closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.script: Callable[[Asked], None] = lambda asked: asked.answer(500, "no script")
        self.list_models: Callable[[Asked], None] = lambda asked: asked.answer(200, {"data": [{"id": "m"}]})
        self.asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self.closed = threading.Semaphore(0)
        self.broken = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_asked(self) -> Asked:
        return self.asked.get(timeout=LIMIT_S)

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
