"""What a server holds, and how fast one client feeds it: the figures of docs/scale.md.

A server of its own and simulated Macs, which are whole workers whose device takes its time asleep, so slow that several
fit the cores of a small machine. Measured are: the memory of jobs that wait and of vectors that nobody has read; the
CPU time of client and servers for each text, of which follows what one core of each carries; and one run of
`impetus embed` with 1, 2 and 4 Macs, from the first to the last text. With `--servers 2` all listen to two servers,
over which the client spreads the jobs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from scripts.corpus import docstrings
from scripts.proofs.interrupted import Server, text_of
from scripts.proofs.processes import end, until

from impetus_producer import Producer

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT_S = 120.0
_TEXTS_PER_JOB = 64


def waiting_job(url: str) -> dict[str, Any]:
    """Bytes that a job of 64 docstrings takes as long as it waits, beside those of its texts, which are compressed."""
    texts = [each.text for each in docstrings()]
    parts = [texts[at : at + _TEXTS_PER_JOB] for at in range(0, len(texts) - _TEXTS_PER_JOB, _TEXTS_PER_JOB)]
    text_bytes = sum(len(text.encode()) for part in parts for text in part)
    with Redis.from_url(url) as connection:
        producer = Producer(connection=connection)
        before = used(connection)
        for part in parts:
            producer.embed(part, bulk=True)
        held = used(connection) - before
        connection.flushall()
    return {
        "jobs": len(parts),
        "text_bytes": round(text_bytes / len(parts)),
        "job_bytes": round(held / len(parts)),
        "of_its_texts": round(held / text_bytes, 2),
    }


def finished_vectors(url: str, jobs: int = 100) -> int:
    """Bytes that a vector of 384 dimensions takes until its result is read or runs out, its job's record included."""
    producer = Producer(url)
    before = used(producer.connection)
    texts = [text_of(number) for number in range(jobs * _TEXTS_PER_JOB)]
    handles = list(producer.embed_many(texts, max_backlog_jobs=jobs + 1))
    for handle in handles:
        handle.result(_LIMIT_S)
    return round((used(producer.connection) - before) / len(texts))


def used(connection: Redis) -> int:
    memory: Any = connection.info("memory")
    return int(memory["used_memory"])


def server_cpu_s(url: str) -> float:
    with Redis.from_url(url) as connection:
        said: Any = connection.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])


def at(urls: Sequence[str]) -> list[str]:
    """The options that name servers."""
    return [word for url in urls for word in ("--redis-url", url)]


def start_mac(folder: Path, urls: Sequence[str], b_us: float) -> subprocess.Popen[bytes]:
    options = [*at(urls), "--roles", "embedding", "--embedding-backend", "simulated"]
    times = ["--simulated-a-ms", "0", "--simulated-b-us", str(b_us)]
    log = (folder / "worker.log").open("ab")
    command = [sys.executable, "-m", "impetus_worker", "run", *options, *times]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def serving(urls: Sequence[str], macs: int) -> None:
    """Waits until so many listen, at every server."""
    for url in urls:
        _serving(url, macs)


def _serving(url: str, macs: int) -> None:

    def listening() -> bool:
        said = subprocess.run(
            [sys.executable, "-m", "impetus_producer", "status", "--json", "--redis-url", url], capture_output=True
        ).stdout
        return [each["alive"] and each["serving"] for each in json.loads(said)["workers"]].count(True) == macs

    until(listening, "the workers did not start", _LIMIT_S)


def embedding(folder: Path, urls: Sequence[str], documents: int) -> dict[str, Any]:
    """One run: texts a second from its first result on, and what each text took of the client and of each server."""
    source = folder / "in.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"id": "{n}", "text": "{text_of(n)}"}}\n' for n in range(documents))
    before = list(map(server_cpu_s, urls))
    output = str(folder / "out.parquet")
    command = ["embed", str(source), "-o", output, *at(urls), "--restart", "--progress", "none"]
    client = subprocess.Popen([sys.executable, "-m", "impetus_producer", *command, "--json"], stdout=subprocess.PIPE)
    started = time.monotonic()
    assert client.stdout is not None
    said = json.loads(client.stdout.read())
    _, status, usage = os.wait4(client.pid, 0)
    client.returncode = os.waitstatus_to_exitcode(status)
    assert client.returncode == 0, said
    return {
        "docs_per_s": said["docs_per_s"],
        "client_cpu_us": round((usage.ru_utime + usage.ru_stime) * 1e6 / documents, 1),
        "server_cpu_us": [
            round((server_cpu_s(url) - earlier) * 1e6 / documents, 1) for url, earlier in zip(urls, before, strict=True)
        ],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macs", default="1,2,4", help="how many, one run each (default: 1,2,4)")
    parser.add_argument("--servers", type=int, default=1, help="how many share each run (default: 1)")
    parser.add_argument("--seconds", type=float, default=15, help="how long each run is to take (default: 15)")
    parser.add_argument("--b-us", type=float, default=500, help="of each token on a simulated device (default: 500)")
    parser.add_argument("--documents", type=int, default=50_000, help="of the run on a device that takes no time")
    options = parser.parse_args()
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="impetus-scale-") as name, ExitStack() as stack:
        folder = Path(name)
        urls = []
        for number in range(options.servers):
            (folder / str(number)).mkdir()
            server = Server(folder / str(number))
            stack.callback(end, server.process)
            urls.append(server.url)
        said["waiting"] = waiting_job(urls[0])
        for url in urls:
            with Redis.from_url(url) as connection:
                connection.config_set("appendfsync", "everysec")
        fast = start_mac(folder, urls, 0)
        serving(urls, 1)
        said["finished_vector_bytes"] = finished_vectors(urls[0])
        said["no_device"] = embedding(folder, urls, options.documents)
        end(fast)
        print(json.dumps(said), flush=True)
        running: list[subprocess.Popen[bytes]] = []
        # Of the simulated tokenizer each digit is a token.
        expected = 1e6 / options.b_us / len(text_of(0).split())
        rates = {}
        for macs in map(int, options.macs.split(",")):
            for _ in range(macs - len(running)):
                running.append(start_mac(folder, urls, options.b_us))
                stack.callback(end, running[-1])
            serving(urls, macs)
            rates[macs] = embedding(folder, urls, round(expected * options.seconds * macs))
            print(f"{macs} Macs: {json.dumps(rates[macs])}", flush=True)
        said["macs"] = rates
        first = min(rates)
        said["of_linear"] = {
            macs: round(each["docs_per_s"] / (rates[first]["docs_per_s"] / first * macs), 2)
            for macs, each in rates.items()
        }
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
