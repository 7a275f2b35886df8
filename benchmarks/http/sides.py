"""What asks a server over HTTP, and the queue, for the same: callers in threads of this process."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from impetus_producer import Producer

from ..means.servers import Server, await_true, child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = "how do I parse the arguments of a command line"
CALLERS = 16


@dataclass(frozen=True, slots=True)
class Site:
    """A server that speaks OpenAI's API, on loopback."""

    host: str
    port: int
    pid: int

    def memory_mb(self) -> float:
        """Of the process, what is in memory now."""
        with open(f"/proc/{self.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096 / 1e6

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=120)


@contextmanager
def gateway(on: Server, *options: str) -> Iterator[Site]:
    log = on.folder / "gateway.log"
    command = [sys.executable, "-m", "impetus_producer", "serve", "--redis-url", on.url, "--port", "0", *options]
    with child(command, log) as process:
        await_true(lambda: "Serving at" in log.read_text(), process, log)
        host, port = log.read_text().split("http://")[1].split(";")[0].split(":")
        found = Site(host, int(port), process.pid)

        def ready() -> bool:
            with closing(found.connection()) as asking:
                asking.request("GET", "/ready")
                return asking.getresponse().status == 200

        await_true(ready, process, log)
        yield found
        process.terminate()


def posted(connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise click.ClickException(f"it answered {answer.status}: {answer.read()[:200]!r}")
    return answer


def chat(**more: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "Go on."}], "stream": True, **more}).encode()


def by_http(to: Site, path: str = "/v1/embeddings", **more: Any) -> Callable[[int], None]:
    """Embeds a text so many times, on one connection."""
    body = json.dumps({"input": TEXT, "encoding_format": "base64", **more}).encode()

    def ask(times: int) -> None:
        with closing(to.connection()) as connection:
            for _ in range(times):
                posted(connection, path, body).read()

    return ask


def by_queue(on: Server) -> Callable[[int], None]:
    producer = Producer(connection=on.connection)

    def ask(times: int) -> None:
        for _ in range(times):
            producer.embed(TEXT, encoding_format="raw").result(60)

    return ask


def per_second(ask: Callable[[int], None], callers: int, times: int) -> float:
    """Requests a second of so many callers, each asking so many times."""
    threads = [threading.Thread(target=ask, args=(times,)) for _ in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return callers * times / (time.perf_counter() - started)


def words_by_http(to: Site, read: list[int], until: float) -> None:
    with closing(to.connection()) as connection:
        while time.monotonic() < until:
            answer = posted(connection, "/v1/chat/completions", chat())
            for line in answer:
                read[0] += line.startswith(b"data: {")
                if time.monotonic() >= until:
                    return


def words_by_queue(on: Server, read: list[int], until: float) -> None:
    producer = Producer(connection=on.connection)
    while time.monotonic() < until:
        handle = producer.generate(messages=[{"role": "user", "content": "Go on."}], stream=True)
        for _ in handle.stream(60):
            read[0] += 1
            if time.monotonic() >= until:
                handle.cancel()
                return


def words_a_second(speak: Callable[[list[int], float], None], seconds: float) -> float:
    counts = [[0] for _ in range(CALLERS)]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=speak, args=(count, until)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(count[0] for count in counts) / seconds
