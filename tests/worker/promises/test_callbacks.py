"""Callbacks and webhooks. See `sides`."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from rq import Callback
from rq.webhook import Webhook

from tests.worker.promises.sides import ERROR, ON_FAILURE, ON_SUCCESS, RAISES, WEBHOOK_PORT, Side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker.promises.comparing import Both


# RQ's own time limit of a job takes the signal that pytest-timeout would use.
pytestmark = [pytest.mark.system, pytest.mark.timeout(180, method="thread")]


def test_a_success_callback_is_called_with_rqs_arguments(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", on_success=ON_SUCCESS, on_failure=ON_FAILURE)
        side.until_status("job", "finished")
        return side.seen("job"), side.counters()

    seen, _ = both.agree(scenario)
    assert seen["calls"] == ["success dict"]


def test_a_failure_callback_is_called_with_the_error_and_no_traceback(both: Both) -> None:
    """The traceback is None, as it is where RQ finds an abandoned job: the error arose in another process."""

    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, on_success=ON_SUCCESS, on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    both.agree(scenario)
    assert both.stock.calls("job") == ["failure InferenceError InferenceError traceback"]
    assert both.ours.calls("job") == ["failure InferenceError InferenceError NoneType"]


def test_a_success_callback_that_raises_fails_its_job(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", on_success=RAISES, on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert seen["calls"] == ["raised dict", "failure ValueError ValueError NoneType"]
    assert seen["results"] == [("FAILED", None, "ValueError: a callback raised")]
    assert counters == (0, 1, True)


def test_a_failure_callback_that_raises_is_the_reason_that_is_kept(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, on_failure=RAISES)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    seen, _ = both.agree(scenario)
    assert seen["results"] == [("FAILED", None, "ValueError: a callback raised")]


def test_a_callback_that_is_not_on_the_list_fails_its_job_and_is_never_imported(both: Both) -> None:
    """Stock RQ runs whatever a job names. That is remote code execution for whoever can write to Redis."""
    for side in (both.stock, both.ours):
        side.enqueue("job", on_success=Callback("tests.worker.whole.callbacks.note_success"))
    both.stock.until_status("job", "finished")
    both.ours.until_status("job", "failed")
    assert both.stock.connection.get("noted") == both.stock.id("job").encode()
    assert both.ours.connection.get("noted") is None
    assert both.ours.reason("job").endswith(
        "success_callback_name: this worker was not told to run 'tests.worker.whole.callbacks.note_success': "
        "name it with --allow-callbacks"
    )


class Listener:
    """A web server on loopback that keeps what it is sent. Requests for /slow wait until `let_go` is set."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, Any] | None]] = []
        self.let_go = threading.Event()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any] | None) -> None:
                listener.requests.append((self.command, self.path, body))
                if self.path.startswith("/slow"):
                    listener.let_go.wait(10)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", WEBHOOK_PORT), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=partial(self._server.serve_forever, 0.05))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def got(self, path: str) -> list[tuple[str, dict[str, Any] | None]]:
        return [(method, body) for method, where, body in list(self.requests) if where == path]

    def stop(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.stop()


def test_webhooks_are_sent_with_rqs_payload(both: Both, listener: Listener) -> None:
    def scenario(side: Side) -> Any:
        def hooks() -> list[Webhook]:
            return [
                Webhook(listener.url(f"/{type(side).__name__}/{status}/{method}"), status, method=method)
                for status in ("finished", "failed")
                for method in ("GET", "POST")
            ]

        side.enqueue("good", webhooks=hooks())
        side.enqueue("bad", ERROR, webhooks=hooks())
        side.until_status("good", "finished")
        side.until_status("bad", "failed")
        sent = {}
        for status in ("finished", "failed"):
            for method in ("GET", "POST"):
                path = f"/{type(side).__name__}/{status}/{method}"
                side.until(partial(listener.got, path))
                sent[status, method] = [
                    (how, body and {name: _shape(name, value) for name, value in body.items()})
                    for how, body in listener.got(path)
                ]
        return sent, {**side.seen("good"), "fields": None}, {**side.seen("bad"), "fields": None}, side.counters()

    sent, *_ = both.agree(scenario)
    assert sent["finished", "GET"] == [("GET", None)]
    ((_, body),) = sent["failed", "POST"]
    assert body["status"] == "failed"
    assert "InferenceError" in body["exc_info"]


def _shape(name: str, value: str) -> str:
    if name.endswith("_at"):
        return type(datetime.fromisoformat(value)).__name__
    return value.strip().splitlines()[-1]


def test_a_slow_receiver_of_webhooks_holds_up_no_job(both: Both, listener: Listener) -> None:
    """Stock RQ waits up to 10 s for each. Ours sends them from threads of their own."""
    side = both.ours
    side.enqueue("job", webhooks=[Webhook(listener.url("/slow"), "finished")])
    side.until(lambda: listener.got("/slow"))
    side.enqueue("next")
    side.until_status("next", "finished")
    assert side.status("job") == "finished"
    assert not listener.let_go.is_set()
