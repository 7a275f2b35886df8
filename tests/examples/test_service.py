"""Each example in one file does what its first lines say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

from tests.paths import ROOT
from tests.patience import eventually
from tests.producer.servers.valkey import Valkey

if TYPE_CHECKING:
    from types import ModuleType

    from tests.worker.conftest import Fleet

pytestmark = pytest.mark.system
EXAMPLES = ROOT / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_service_answers_at_once_and_finds_its_summaries_later(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_REDIS_URL", fleet.url)
    with TestClient(example("fastapi_service").app) as service:
        texts = ["one", "two and a half", "three"]
        found = service.post("/nearest", json={"query": "two and a half", "texts": texts}).json()
        assert found == {"text": "two and a half", "similarity": 1.0}
        accepted = service.post("/summaries", json={"text": "Something long."})
        assert accepted.status_code == 202

        def seen() -> dict[str, Any]:
            answer: dict[str, Any] = service.get(accepted.json()["url"]).json()
            return answer if answer["status"] == "finished" else {}

        assert eventually(seen)["summary"]
        assert service.get("/summaries/none").status_code == 404
        assert service.post("/nearest", json={"query": "x", "texts": []}).status_code == 422


def test_a_service_whose_server_went_away_says_when_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Valkey(tmp_path)
    try:
        monkeypatch.setenv("IMPETUS_REDIS_URL", server.url)
        module = example("fastapi_service")
        monkeypatch.setattr(module, "PATIENCE_S", 0)
        with TestClient(module.app) as service:
            server.kill()
            answer = service.post("/summaries", json={"text": "x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    finally:
        server.kill()
