"""`impetus generate INPUT -o OUT`: an answer for each document, by the same means as `impetus embed`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from pyarrow import parquet

from impetus_producer.cli.main import cli
from impetus_producer.errors import InvalidRequestError
from impetus_producer.reading.templates import Template
from tests.patience import eventually

from ..stock_worker import RefusedError, generation_of, working

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

pytestmark = pytest.mark.system

PROGRAM = [sys.executable, "-m", "impetus_producer"]


class Answering:
    """Answers a prompt with the prompt in capitals, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def work(self, function: str, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        prompt = request.get("prompt") or request["messages"][-1]["content"]
        if prompt.startswith("bad"):
            raise RefusedError("messages: item 0 is bad")
        return generation_of(prompt.upper())

    @property
    def prompts(self) -> Counter[str]:
        asked = (request.get("prompt") or request["messages"][-1]["content"] for request in self.requests)
        return Counter(prompt for prompt in asked if prompt != "Which model is this?")


def generate(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["generate", *arguments], env={"IMPETUS_REDIS_URL": url})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_document_has_an_answer_in_its_place(folder: Path, redis_url: str) -> None:
    rows = [{"id": number, "title": f"t{number}", "doc": {"body": f"b{number}"}, "n": [number]} for number in range(5)]
    rows.insert(2, {"id": "x", "doc": {"body": "no title"}})
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answering = Answering()
    options = ["--system", "Be brief.", "--max-tokens", "9", "--temperature", "0", "--column", "n"]
    with working(redis_url, answering.work):
        result = generate(
            redis_url, "in.jsonl", "--template", "{title}: {doc.body} {{{n}}}", *options, "-o", "out.jsonl", "--json"
        )
    assert result.exit_code == 1, result.output
    said = json.loads(result.stdout)
    assert (said["documents"], said["written"], said["failed"], said["tokens"]) == (6, 5, 1, 10)
    assert [request["messages"] for request in answering.requests][:1] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "t0: b0 {[0]}"}]
    ]
    assert {(request["max_tokens"], request["temperature"]) for request in answering.requests} == {(9, 0.0)}
    lines = lines_of(folder / "out.jsonl")
    assert lines[0] == {
        "id": 0,
        "row": 1,
        "n": [0],
        "text": "T0: B0 {[0]}",
        "finish_reason": "stop",
        "reasoning": None,
        "prompt_tokens": 1,
        "completion_tokens": 1,
    }
    assert [line["id"] for line in lines] == [0, 1, 2, 3, 4]
    (error,) = lines_of(folder / "out.jsonl.errors.jsonl")
    assert (error["id"], error["reason"]) == ("x", "line 3: there is no field 'title'")


def test_parquet_and_lines_without_a_template(folder: Path, redis_url: str) -> None:
    (folder / "in.txt").write_text("one\nbad\ntwo\n")
    answering = Answering()
    with working(redis_url, answering.work):
        result = generate(redis_url, "in.txt", "--raw", "-o", "out.parquet")
    assert result.exit_code == 1
    table = parquet.read_table("out.parquet")
    assert table.schema.names[:4] == ["id", "row", "text", "finish_reason"]
    assert table.column("text").to_pylist() == ["ONE", "TWO"]
    assert table.column("id").to_pylist() == ["1", "3"]
    assert answering.requests[0] == {"prompt": "one"}


def test_a_run_that_was_killed_is_gone_on_with(folder: Path, redis_url: str) -> None:
    texts = [f"text {number}" for number in range(30)]
    (folder / "in.txt").write_text("\n".join(texts))
    answering, held, go_on = Answering(), threading.Event(), threading.Event()

    def slow(function: str, request: dict[str, Any]) -> Any:
        if len(answering.requests) == 12:
            held.set()
            assert go_on.wait(30)
        return answering.work(function, request)

    with working(redis_url, slow):
        command = [*PROGRAM, "generate", "in.txt", "-o", "out.jsonl", "--redis-url", redis_url]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            assert held.wait(30)
            journal = folder / "out.jsonl.impetus" / "answers.sqlite-wal"
            eventually(lambda: journal.exists() and journal.stat().st_size)
            process.kill()
        go_on.set()
        result = generate(redis_url, "in.txt", "-o", "out.jsonl")
    assert result.exit_code == 0, result.output
    assert [line["text"] for line in lines_of(folder / "out.jsonl")] == [text.upper() for text in texts]
    assert answering.prompts == Counter(texts)


def test_equal_prompts_are_answered_once_only_where_the_answer_is_fixed(folder: Path, redis_url: str) -> None:
    (folder / "in.txt").write_text("same\nsame\nsame\n")
    for options, times in ((["--seed", "1"], 1), (["--temperature", "0"], 1), ([], 3)):
        answering = Answering()
        with working(redis_url, answering.work):
            assert generate(redis_url, "in.txt", *options, "-o", "out.jsonl").exit_code == 0
        assert answering.prompts["same"] == times
        assert len(lines_of(folder / "out.jsonl")) == 3


def test_answers_that_were_cut_off_are_counted(folder: Path, redis_url: str) -> None:
    (folder / "in.txt").write_text("one\ntwo\n")
    with working(redis_url, lambda function, request: generation_of("x") | {"finish_reason": "length"}):
        result = generate(redis_url, "in.txt", "-o", "out.jsonl")
    assert "2 answers were cut off where --max-tokens, or the context, ended" in result.stderr
    assert {line["finish_reason"] for line in lines_of(folder / "out.jsonl")} == {"length"}


def test_what_cannot_be_is_told_before_any_work(folder: Path, redis_url: str) -> None:
    (folder / "in.jsonl").write_text("{}")
    for arguments, sentence in {
        ("in.jsonl", "-o", "out.npy"): "holds vectors and no texts",
        ("in.jsonl", "-o", "out.lance"): "holds vectors and no texts",
        ("in.jsonl", "-o", "out.jsonl", "--template", "no field"): "names no field",
        ("in.jsonl", "-o", "out.jsonl", "--template", "{a!r}"): "write the names of fields alone in braces",
        ("in.jsonl", "-o", "out.jsonl", "--template", "{a"): "a brace itself is written twice",
        ("in.jsonl", "-o", "out.jsonl", "--column", "text"): "OUT has a column 'text' of its own",
        ("in.jsonl", "-o", "out.jsonl", "--temperature", "9"): "temperature",
        ("in.jsonl", "-o", "out.jsonl", "--stream"): "for one PROMPT",
        ("one", "two"): "Give one PROMPT, in quotes",
        ("one", "--template", "{text}"): "--template is for many documents: add -o OUT",
        ("one", "--store", "x.sqlite"): "--store is for many documents",
    }.items():
        result = generate(redis_url, *arguments)
        assert (result.exit_code, sentence in result.stderr) == (2, True), result.output
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


def test_a_template_is_filled_with_what_it_names_and_runs_nothing() -> None:
    template = Template("{a}, {a.b} and {{c}}")
    assert template.fields == ("a", "a.b")
    assert template.filled({"a": "{a.b}", "a.b": {"x": "é"}}) == '{a.b}, {"x": "é"} and {c}'
    with pytest.raises(ValueError, match="nothing in the field 'a'"):
        template.filled({"a": None, "a.b": 1})
    with pytest.raises(InvalidRequestError):
        Template("{}")
