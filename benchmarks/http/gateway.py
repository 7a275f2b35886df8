"""What HTTP costs, and what a gateway bears.

Queue and gateway are asked in turn by the same callers, on the same server and worker, on the simulated backend, so
that what is measured is not the model. The gateway is a process of its own; callers are threads of this one, which on a
machine of few cores has its share in every figure.

- one text: an embedding at a time from one caller, and from 16; a batch of the device takes 4 ms.
- streams: 16 generations that decode together, a step takes 20 ms; words a second that the callers read.
- open: so many streams open on one gateway and all of them running; its memory before, with them, and after they hang
  up, and whether their jobs then ended.
- refused: 16 streams run while refused requests come as fast as they can; what the streams lose by it.
- peers: `http_peers.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from impetus_producer import Producer

from ..means.report import Report, json_option, median, progress
from ..means.servers import Server, server, worker
from . import peers as http_peers
from .sides import (  # fmt: skip
    CALLERS,
    Site,
    by_http,
    by_queue,
    chat,
    gateway,
    per_second,
    posted,
    words_a_second,
    words_by_http,
    words_by_queue,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_STEP_MS = 20
_FLOODING = 8


def one_text(on: Server, to: Site, rounds: int, seconds: float) -> list[dict[str, Any]]:
    sides = {"queue": by_queue(on), "gateway": by_http(to)}
    rows = []
    for callers in (1, CALLERS):
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for ask in sides.values():
            per_second(ask, callers, 5)
        for _ in range(rounds):
            for name, ask in sides.items():
                times = max(5, int(seconds * (50 if callers == 1 else 30)))
                rates[name].append(per_second(ask, callers, times))
        ratios = [gate / queue for gate, queue in zip(rates["gateway"], rates["queue"], strict=True)]
        rows.append({"callers": callers, "queue /s": median(rates["queue"]), "gateway /s": median(rates["gateway"]),
                     "ratio": median(ratios), "from": min(ratios), "to": max(ratios)})  # fmt: skip
        progress(f"one text, {callers} callers: {median(ratios):.2f}")
    return rows


def streams(on: Server, to: Site, rounds: int, seconds: float) -> list[dict[str, Any]]:
    pairs = []
    for _ in range(rounds):
        queue = words_a_second(lambda read, until: words_by_queue(on, read, until), seconds)
        pairs.append((queue, words_a_second(lambda read, until: words_by_http(to, read, until), seconds)))
    ratios = [gate / queue for queue, gate in pairs]
    progress(f"16 streams: {median(ratios):.2f}")
    return [{"streams": CALLERS, "queue words/s": median([each for each, _ in pairs]),
             "gateway words/s": median([each for _, each in pairs]), "ratio": median(ratios), "from": min(ratios),
             "to": max(ratios)}]  # fmt: skip


async def _open_all(to: Site, count: int, seconds: float) -> tuple[int, float, int]:
    """Opens the streams and reads all of them: how many spoke, the gateway's memory meanwhile, and events read."""
    body = chat(ignore_eos=True, max_tokens=5000)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {to.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    events = [0] * count
    most = 0.0

    async def listen(at: int) -> None:
        reader, writer = await asyncio.open_connection(to.host, to.port)
        try:
            writer.write(head + body)
            async for line in reader:
                events[at] += line.startswith(b"data: {")
        finally:
            writer.close()

    listening = [asyncio.create_task(listen(at)) for at in range(count)]
    for _ in range(int(seconds)):
        await asyncio.sleep(1)
        most = max(most, to.memory_mb())
    for each in listening:
        each.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    return sum(map(bool, events)), most, sum(events)


def many_open(on: Server, to: Site, count: int, seconds: float) -> list[dict[str, Any]]:
    before = to.memory_mb()
    spoke, most, events = asyncio.run(_open_all(to, count, seconds))
    hung_up = time.monotonic()
    while int(on.connection.zcard("rq:wip:generation")) + int(on.connection.llen("rq:queue:generation")):
        if time.monotonic() > hung_up + 60:
            break
        time.sleep(0.2)
    left = int(on.connection.zcard("rq:wip:generation")) + int(on.connection.llen("rq:queue:generation"))
    return [{"streams": count, "that spoke": spoke, "events/s": events / seconds, "MB before": before,
             "MB with them": most, "KB a stream": 1000 * (most - before) / count, "MB after": to.memory_mb(),
             "jobs left": left, "all ended after s": time.monotonic() - hung_up}]  # fmt: skip


async def _flood(to: Site, seconds: float) -> dict[int, int]:
    body = chat()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {to.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    statuses: dict[int, int] = {}
    until = time.monotonic() + seconds

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(to.host, to.port)
        while time.monotonic() < until:
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            status = int(answer.split(b" ", 2)[1])
            statuses[status] = statuses.get(status, 0) + 1
            if status == 200:  # a stream, which is no refusal
                break
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(_FLOODING)))
    return statuses


def refused(on: Server, to: Site, seconds: float) -> list[dict[str, Any]]:
    """16 streams fill the worker's places; what the producer enqueues besides is over the gateway's backlog."""
    producer = Producer(connection=on.connection)
    counts = [[0] for _ in range(CALLERS)]
    until = time.monotonic() + 3 * seconds + 4
    body = chat(ignore_eos=True, max_tokens=5000)

    def listen(count: list[int]) -> None:
        with closing(to.connection()) as connection:
            for line in posted(connection, "/v1/chat/completions", body):
                count[0] += line.startswith(b"data: {")
                if time.monotonic() >= until:
                    return

    threads = [threading.Thread(target=listen, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    while not all(count[0] for count in counts):
        time.sleep(0.05)
    waiting = [producer.generate("Go on.", max_tokens=5000, ignore_eos=True) for _ in range(60)]
    time.sleep(2.5)  # the gateway looks once a second

    def rate_while(do: Callable[[], Any]) -> tuple[float, Any]:
        begun, started = sum(count[0] for count in counts), time.perf_counter()
        done = do()
        return (sum(count[0] for count in counts) - begun) / (time.perf_counter() - started), done

    quiet, _ = rate_while(lambda: time.sleep(seconds))
    flooded, statuses = rate_while(lambda: asyncio.run(_flood(to, seconds)))
    for thread in threads:
        thread.join()
    for each in waiting:
        each.cancel()
    return [{"refused/s": statuses.get(429, 0) / seconds, "others": sum(statuses.values()) - statuses.get(429, 0),
             "words/s before": quiet, "words/s meanwhile": flooded, "ratio": flooded / quiet}]  # fmt: skip


@click.command("gateway")
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="About so long takes each side of a round.")
@click.option("--open", "open_streams", default=1000, show_default=True, help="Streams open at once.")
@click.option("--peers", is_flag=True, help="Other servers too, on real models: mlx_lm.server, Infinity, TEI if here.")
@click.option("--only-peers", is_flag=True, help="Nothing but these.")
@json_option("gateway")
def command(rounds: int, seconds: float, open_streams: int, peers: bool, only_peers: bool, json_path: Path) -> None:
    """What HTTP costs beside the queue and beside other servers, and how much one gateway bears."""
    report = Report("gateway", rounds=rounds, seconds=seconds, open=open_streams)
    if not only_peers:
        _alone(report, rounds, seconds, open_streams)
    if peers or only_peers:
        http_peers.compare(report, rounds, seconds)
    report.write(json_path)


def _alone(report: Report, rounds: int, seconds: float, open_streams: int) -> None:
    with server() as on, worker(on, "--simulated-b-us", "0"), gateway(on) as to:
        rows = one_text(on, to, rounds, seconds)
    report.table("one_text", "One text a request", rows, ["ratio: of the gateway's rate to the queue's, a round each"])
    with server() as on:
        generating = ("--generation-backend", "simulated", "--simulated-a-ms", str(_STEP_MS))
        with worker(on, *generating, role="generation"), gateway(on, "--max-backlog", "50") as to:
            rows = streams(on, to, rounds, seconds)
            report.table("streams", "Streams that decode together", rows)
            report.table("refused", "16 streams while others are refused", refused(on, to, 2 * seconds))
    with server() as on:
        slow = ("--generation-backend", "simulated", "--simulated-a-ms", "1000")
        places = ("--max-concurrent-generations", str(open_streams))
        with worker(on, *slow, *places, role="generation"), gateway(on, "--max-backlog", "100000") as to:
            rows = many_open(on, to, open_streams, 5 * seconds)
    report.table("open", "Streams open on one gateway, all of them running", rows)
