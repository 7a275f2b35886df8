"""`/v1/models` lists every model that a worker serves, each with the names that are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_producer.contract import WORKER_RECORD_KEY, ServedModel, WorkerRecord
from tests.patience import eventually

from .serving import serving

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system


def test_each_model_of_a_worker_is_listed_and_found_by_its_own_names(redis_server: Any, connection: Redis) -> None:
    more = (ServedModel(name="org/large", aliases=("large",)), ServedModel(name="tiny"))
    record = WorkerRecord(
        name="w", role="embedding", model="org/small", aliases=("org/small", "small", "org/large", "large", "tiny"),
        more_models=more, backend="cpu", device="cpu", ttl_s=60.0,
    )  # fmt: skip
    connection.sadd("rq:workers", "rq:worker:w")
    connection.hset("rq:worker:w", mapping={"queues": "embedding,embedding-bulk", "state": "idle"})
    connection.set(WORKER_RECORD_KEY + "w", record.model_dump_json(), ex=60)
    with serving(redis_server.url) as gateway:
        listed = eventually(lambda: gateway.client.get("/v1/models").json()["data"])
        assert {each["id"]: each["aliases"] for each in listed} == {
            "org/large": ["large"], "org/small": ["small"], "tiny": [],
        }  # fmt: skip
        assert gateway.client.get("/v1/models/large").json()["id"] == "org/large"
        assert gateway.client.get("/v1/models/small").json()["id"] == "org/small"
        refused = gateway.post("/v1/embeddings", {"input": "fox", "model": "huge"}).json()["error"]
        assert refused["message"] == "there is no model 'huge' here; there is org/large, org/small, tiny"
