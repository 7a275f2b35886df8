"""What is asked by day and answered by night."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples.test_service import example
from tests.gateway.serving import serving
from tests.paths import ROOT

if TYPE_CHECKING:
    from tests.worker.conftest import Fleet

pytestmark = pytest.mark.system
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def worker_options() -> tuple[str, ...]:
    return ("--simulated-a-ms", "20", "--max-batch-texts", "4")


def requests(count: int) -> str:
    asked = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": {"input": f"text {number}"}}
        for number in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in asked)


def names(path: Path) -> list[str]:
    return sorted((json.loads(line)["custom_id"] for line in path.read_text().splitlines()), key=int)


def night(fleet: Fleet, tmp_path: Path) -> int:
    environment = {
        **os.environ,
        "IMPETUS_REDIS_URL": fleet.url,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command: list[str | Path] = ["sh", EXAMPLES / "nightly.sh", tmp_path / "in", tmp_path / "out"]
    return subprocess.run(command, env=environment, timeout=100, check=False, capture_output=True).returncode


def test_a_folder_is_answered_by_night_and_what_is_done_is_moved(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jsonl").write_text(requests(20))
    bad = json.dumps({"custom_id": "9", "method": "POST", "url": "/v1/embeddings", "body": {"input": []}})
    (tmp_path / "in" / "partly.jsonl").write_text(requests(2) + bad + "\n")
    (tmp_path / "in" / "broken.jsonl").write_text("{\n")
    assert night(fleet, tmp_path) == 1
    assert sorted(path.name for path in (tmp_path / "in").glob("*.jsonl")) == ["broken.jsonl"]
    assert names(tmp_path / "out" / "good.jsonl") == [str(number) for number in range(20)]
    assert names(tmp_path / "out" / "partly.jsonl") == ["0", "1"]
    assert names(tmp_path / "out" / "partly.jsonl.errors.jsonl") == ["9"]
    (tmp_path / "in" / "broken.jsonl").unlink()
    assert night(fleet, tmp_path) == 0


def test_what_is_not_answered_at_the_deadline_comes_back(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fleet.url, files=tmp_path / "files") as served:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{served.url}/v1")
        overnight: Any = example("overnight/overnight")
        (tmp_path / "today.jsonl").write_text(requests(3000))
        (tmp_path / "small.jsonl").write_text(requests(10))
        large, small = (overnight.submit(tmp_path / name) for name in ("today.jsonl", "small.jsonl"))
        files = tmp_path / "answers.jsonl", tmp_path / "rest.jsonl"
        tomorrow = datetime.now() + timedelta(days=1)
        assert overnight.collect(small, tomorrow, *files, look_every_s=0.05).status == "completed"
        assert (len(names(files[0])), names(files[1])) == (10, [])
        batch = overnight.collect(large, datetime.now(), *files, look_every_s=0.05)
        assert batch.status == "cancelled"
        answered, rest = names(files[0]), names(files[1])
        assert rest
        assert sorted([*answered, *rest], key=int) == [str(number) for number in range(3000)]
        assert set(json.loads(files[1].read_text().splitlines()[0])) == {"custom_id", "method", "url", "body"}
        overnight.client.close()
