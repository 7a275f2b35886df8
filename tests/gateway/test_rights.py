"""A gateway as the Redis user `producer` of docker/compose.yaml: all works but what stops workers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.composed import ComposedValkey
from tests.worker.conftest import RunningWorker, eventually

from .serving import is_ready, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system
SIMULATED = ("--embedding-backend", "simulated", "--generation-backend", "simulated")
LATER = {"Prefer": "respond-async"}


def test_a_producers_rights_are_enough_for_all_but_commanding_workers(tmp_path: Path) -> None:
    server = ComposedValkey(tmp_path)
    with ExitStack() as stopping:
        stopping.callback(server.kill)
        url = server.url_of("worker", "IMPETUS_REDIS_URL")
        worker = RunningWorker(url, tmp_path / "worker.log", *SIMULATED)
        stopping.callback(worker.stop)
        with serving(url.replace("worker:of-workers", "producer:of-producers")) as served:
            eventually(lambda: is_ready(served, "embedding", "generation"))
            ask = served.client
            assert ask.post("/v1/embeddings", json={"input": "x"}, headers={"Idempotency-Key": "a"}).status_code == 200
            chat = {"messages": [{"role": "user", "content": "Go on."}]}
            assert "[DONE]" in ask.post("/v1/chat/completions", json={**chat, "stream": True}).text
            long = {**chat, "ignore_eos": True, "max_tokens": 5000}
            place = ask.post("/v1/chat/completions", json=long, headers=LATER).headers["Location"]
            eventually(lambda: ask.get(place).json()["status"] == "running")
            with ask.stream("GET", "/v1/fleet/events") as events:
                overview = next(line for line in events.iter_lines() if line.startswith("data"))
            assert place.rpartition("/")[2] in overview
            eventually(lambda: ask.delete(place).json()["status"] == "cancelled")
            bad = ask.post("/v1/embeddings", json={"input": "x", "dimensions": 5000}, headers=LATER).headers["Location"]
            eventually(lambda: ask.get(bad).json()["status"] == "failed")
            assert ask.post(f"{bad}/retry").status_code == 200
            refused = ask.post("/v1/fleet/suspend")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_refuses")
