"""The gateway beside other servers of OpenAI's API, on real models and this machine's CPU, the sides in turn.

- one text: an embedding of MiniLM at a time from one caller, and from 16; Infinity from an environment of its own, and
  TEI where `text-embeddings-router` is on the PATH (it is no Python package).
- 16 streams: completions of 64 tokens each of a tiny model that never ends by itself, read to their ends by 16 callers;
  `mlx_lm.server` with as many rows as our worker.

Each is also asked of our queue by `Producer`, which is what HTTP costs here.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from impetus_backends import models
from impetus_producer import Producer

from ..generation.rates import free_port, http_server
from ..generation.subjects import TINY_SAYS, made_endless
from ..means import peers
from ..means.report import Report, median, progress
from ..means.servers import Server, await_true, child, server, worker
from .sides import CALLERS, Site, by_http, by_queue, gateway, per_second, posted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Ask = Callable[[int], None]

_TOKENS = 64
_PROMPT = "The river"
_TEI = "text-embeddings-router"


@contextmanager
def _serving(on: Server, name: str, command: list[str | Path], port: int) -> Iterator[Site]:
    """A peer's server, from when it says that it is well."""
    log = on.folder / f"{name}.log"
    # None of them may ask, or tell, anybody else. torch's threads spin while they wait for one another: on a machine
    # that has other work a request then lasts a second.
    environment = {
        "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    with child(command, log, environment=environment) as process:
        site = Site("127.0.0.1", port, process.pid)

        def healthy() -> bool:
            try:
                with closing(site.connection()) as asking:
                    asking.request("GET", "/health")
                    return asking.getresponse().status == 200
            except OSError:
                return False

        await_true(healthy, process, log, 300)
        yield site


@contextmanager
def _embedders(on: Server, to: Site) -> Iterator[dict[str, Ask]]:
    """Ways to embed one text, ours and theirs."""
    model = models.resolve(models.DEFAULT_EMBEDDING_MODEL).folder
    sides = {"queue": by_queue(on), "gateway": by_http(to)}
    with ExitStack() as running:
        port = free_port()
        start = "from infinity_emb.cli import cli; cli()"
        infinity: list[str | Path] = [
            peers.python_of("peers-infinity"), "-c", start, "v2", "--model-id", model, "--served-model-name", "bench",
            "--engine", "torch", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port),
            "--no-model-warmup", "--no-bettertransformer", "--no-compile",
        ]  # fmt: skip
        site = running.enter_context(_serving(on, "infinity", infinity, port))
        sides["infinity"] = by_http(site, "/embeddings", model="bench")
        if (tei := shutil.which(_TEI)) is not None:
            port = free_port()
            command: list[str | Path] = [
                tei, "--model-id", model, "--hostname", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            ]  # fmt: skip
            sides["tei"] = by_http(running.enter_context(_serving(on, "tei", command, port)), model="bench")
        else:
            click.echo(f"{_TEI} is not on the PATH: TEI is left out", err=True)
        yield sides


def _streams_by_http(to: Site, **more: Any) -> Ask:
    body = json.dumps({"prompt": _PROMPT, "max_tokens": _TOKENS, "temperature": 0, "stream": True, **more}).encode()

    def ask(times: int) -> None:
        with closing(to.connection()) as connection:
            for _ in range(times):
                posted(connection, "/v1/completions", body).read()

    return ask


def _streams_by_queue(on: Server) -> Ask:
    producer = Producer(connection=on.connection)

    def ask(times: int) -> None:
        for _ in range(times):
            for _ in producer.generate(_PROMPT, max_tokens=_TOKENS, temperature=0, stream=True).stream(120):
                pass

    return ask


def _compared(
    sides: Mapping[str, Ask], callers: int, times: int, rounds: int, unit: float = 1.0
) -> list[dict[str, Any]]:
    """A row for each side but the gateway: its rate, and the gateway's as a share of it. `unit`: of a request."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for ask in sides.values():
        per_second(ask, callers, 1)
    for _ in range(rounds):
        for name, ask in sides.items():
            rates[name].append(unit * per_second(ask, callers, times))
    rows = []
    for name in sides.keys() - {"gateway"}:
        ratios = [ours / theirs for ours, theirs in zip(rates["gateway"], rates[name], strict=True)]
        rows.append({"of": name, "callers": callers, "/s": median(rates[name]), "gateway /s": median(rates["gateway"]),
                     "ratio": median(ratios), "from": min(ratios), "to": max(ratios)})  # fmt: skip
        progress(f"{callers} callers: the gateway has {median(ratios):.2f} of {name}")
    return sorted(rows, key=lambda row: str(row["of"]))


def compare(report: Report, rounds: int, seconds: float) -> None:
    """Writes two tables."""
    with server() as on, worker(on, "--embedding-backend", "cpu"), gateway(on) as to, _embedders(on, to) as sides:
        rows = [
            row for callers, rate in ((1, 20), (CALLERS, 3))
            for row in _compared(sides, callers, max(2, int(seconds * rate)), rounds)
        ]  # fmt: skip
    report.table("peers_one_text", "One text a request, MiniLM on the CPU", rows, ["ratio: gateway to the other"])
    with server() as on:
        model = made_endless(TINY_SAYS, on.folder)
        options = ("--generation-model", str(model), "--generation-backend", "mlx")
        with (
            worker(on, *options, "--max-concurrent-generations", str(CALLERS), role="generation"),
            gateway(on) as to,
            http_server(on, model, {}) as port,
        ):
            theirs = Site("127.0.0.1", port, 0)
            sides = {
                "queue": _streams_by_queue(on),
                "gateway": _streams_by_http(to),
                "mlx_lm.server": _streams_by_http(theirs, model="default_model"),
            }
            rows = _compared(sides, CALLERS, max(1, int(seconds / 2)), rounds, _TOKENS)
    report.table("peers_streams", "Tokens of 16 streams", rows, ["ratio: gateway to the other"])
