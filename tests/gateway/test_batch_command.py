"""`impetus batch submit`, `status`, `cancel` and `output` against a gateway."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_gateway.entry.callers import Keys, Role, new_key
from impetus_producer.cli.main import cli
from tests.patience import eventually

from .serving import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker.conftest import Fleet

    from .serving import Serving

pytestmark = pytest.mark.system


def batch(*arguments: str, url: str) -> Any:
    return CliRunner().invoke(cli, ["batch", *arguments, "--gateway", url])


def embeddings(*inputs: Any) -> str:
    lines = (
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/embeddings", "body": {"input": each}}
        for number, each in enumerate(inputs)
    )
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_a_batch_is_submitted_followed_and_fetched(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(embeddings("a", "b", "c", "d"))
    sent = batch("submit", "in.jsonl", "--window", "2h", "--metadata", "night=first", url=served.url)
    assert sent.exit_code == 0, sent.stderr
    batch_id = sent.stdout.strip()
    eventually(lambda: "completed" in batch("status", batch_id, url=served.url).stdout)
    assert "4 of 4 answered, 0 failed" in batch("status", url=served.url).stdout
    shown = json.loads(batch("status", batch_id, "--json", url=f"{served.url}/v1").stdout)
    assert (shown["metadata"], shown["completion_window"]) == ({"night": "first"}, "2h")
    fetched = batch("output", batch_id, "-o", "out.jsonl", url=served.url)
    assert fetched.exit_code == 0, fetched.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {answer["custom_id"] for answer in answers} == {"0", "1", "2", "3"}
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()
    assert "completed" in batch("cancel", batch_id, url=served.url).stdout


def test_what_failed_is_fetched_too_and_says_so(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(embeddings([], 3))
    batch_id = batch("submit", "in.jsonl", url=served.url).stdout.strip()
    eventually(lambda: "completed" in batch("status", batch_id, url=served.url).stdout)
    fetched = batch("output", batch_id, "-o", "out.jsonl", url=served.url)
    assert fetched.exit_code == 1
    assert "0 of 2 answered, 2 failed" in fetched.stderr
    errors = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert {json.loads(line)["response"]["status_code"] for line in errors} == {400}


def test_what_is_wrong_is_said_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nobody = "http://127.0.0.1:1"
    (tmp_path / "in.jsonl").write_text(embeddings("a") * 2)
    assert "line 2: '0' is that of line 1 too" in batch("submit", "in.jsonl", url=nobody).stderr
    chat = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
    (tmp_path / "in.jsonl").write_text(embeddings("a") + json.dumps(chat))
    assert "a batch has one endpoint" in batch("submit", "in.jsonl", url=nobody).stderr
    (tmp_path / "in.jsonl").write_text(embeddings("a"))
    assert "is `impetus serve` running?" in batch("submit", "in.jsonl", url=nobody).stderr
    assert "is no URL such as" in batch("status", url="file:///etc/passwd").stderr


def test_a_key_is_taken_from_the_environment_and_strangers_see_nothing(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text(embeddings("a"))
    made = {name: new_key(name, [Role.SUBMIT, Role.READ]) for name in ("anna", "bob")}
    keys = tmp_path / "keys.toml"
    keys.write_text("\n".join(entry for _, entry in made.values()))
    with serving(fleet.url, Keys.read(keys)) as running:
        assert "the gateway refuses (401)" in batch("submit", "in.jsonl", url=running.url).stderr
        monkeypatch.setenv("IMPETUS_API_KEY", made["anna"][0])
        batch_id = batch("submit", "in.jsonl", url=running.url).stdout.strip()
        assert batch_id in batch("status", url=running.url).stdout
        monkeypatch.setenv("IMPETUS_API_KEY", made["bob"][0])
        assert batch("status", url=running.url).stdout == ""
        assert "the gateway refuses (404): there is no batch" in batch("status", batch_id, url=running.url).stderr
