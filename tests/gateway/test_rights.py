"""A gateway as the Redis user `producer` of docker/compose.yaml: all works but what stops workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.composed import PASSWORDS, ComposedValkey
from tests.patience import eventually

from .serving import serving, stock_worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system
LATER = {"Prefer": "respond-async"}


def test_a_producers_rights_are_enough_for_all_but_commanding_workers(tmp_path: Path) -> None:
    server = ComposedValkey(tmp_path)
    try:
        url = server.url_of("worker", "IMPETUS_REDIS_URL")
        operator = f"redis://:{PASSWORDS['REDIS_PASSWORD']}@127.0.0.1:{server.port}/0"
        with serving(url.replace("worker:of-workers", "producer:of-producers")) as served:
            ask = served.client
            place = ask.post("/v1/embeddings", json={"input": "x"}, headers=LATER).headers["Location"]
            with ask.stream("GET", "/v1/fleet/events") as events:
                overview = next(line for line in events.iter_lines() if line.startswith("data"))
            assert place.rpartition("/")[2] in overview
            assert ask.delete(place).json()["status"] == "cancelled"
            with stock_worker(operator):
                eventually(lambda: ask.get("/ready").status_code == 200)
                once = {"Idempotency-Key": "a"}
                assert ask.post("/v1/embeddings", json={"input": "x"}, headers=once).status_code == 200
                assert "[DONE]" in ask.post("/v1/completions", json={"prompt": "Go on.", "stream": True}).text
                bad = ask.post("/v1/embeddings", json={"input": "bad"}, headers=LATER).headers["Location"]
                eventually(lambda: ask.get(bad).json()["status"] == "failed")
                assert ask.post(f"{bad}/retry").status_code == 200
            refused = ask.post("/v1/fleet/suspend")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_refuses")
    finally:
        server.kill()
