"""`impetus embed`, from its arguments to its exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from tests.patience import eventually

from ..bulk.kept import answers_kept
from ..bulk.test_outputs import read_back
from ..stock_worker import StockWorker, embedding_of, honest_work, vector_of, working
from .typed import PROGRAM, all_of, names, run

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

pytestmark = pytest.mark.system


def test_all_formats_hold_the_same_vectors_in_the_order_of_the_input(
    folder: Path, redis_url: str, worker: StockWorker
) -> None:
    lines = [json.dumps({"id": f"doc/{number}", "text": f"text {number % 90}"}) for number in range(300)]
    (folder / "in.jsonl").write_text("\n".join(lines))
    read = []
    for name in ("out.parquet", "out.jsonl", "out.npy"):
        result = run("embed", "in.jsonl", "--output", name, "--texts-per-job", "7", url=redis_url)
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
        assert result.stderr.splitlines()[-1].startswith("300 documents, 0 failed; ")
        read.append(read_back(folder / name))
    for ids, vectors in read:
        assert ids == [f"doc/{number}" for number in range(300)]
        np.testing.assert_array_equal(vectors, read[0][1])
    assert names(folder) == ["in.jsonl", "out.jsonl", "out.npy", "out.npy.ids.jsonl", "out.parquet"]


@pytest.mark.parametrize("kind", ["txt", "csv", "folder", "stdin"])
def test_every_kind_of_input_is_embedded(folder: Path, redis_url: str, worker: StockWorker, kind: str) -> None:
    stdin = None
    if kind == "txt":
        (folder / "in").write_text("one\ntwo\n")
        arguments, ids = ["in", "--input-format", "txt"], ["1", "2"]
    elif kind == "csv":
        (folder / "in.csv").write_text("isbn,blurb\nx,one\ny,two\n")
        arguments, ids = ["in.csv", "--id-field", "isbn", "--text-field", "blurb"], ["x", "y"]
    elif kind == "folder":
        (folder / "in").mkdir()
        for name, text in (("a.md", "one"), ("b.txt", "two")):
            (folder / "in" / name).write_text(text)
        arguments, ids = ["in"], ["a.md", "b.txt"]
    else:
        arguments, ids, stdin = ["-"], ["1", "2"], b"one\ntwo\n"
    result = run("embed", *arguments, "-o", "out.npy", url=redis_url, stdin=stdin)
    assert result.exit_code == 0, result.output
    assert read_back(folder / "out.npy")[0] == ids


def test_documents_that_fail_are_listed_and_the_others_written(
    folder: Path, redis_url: str, worker: StockWorker
) -> None:
    (folder / "in.txt").write_bytes(b"one\nbad\n\xff\nfour\n")
    result = run("embed", "in.txt", "-o", "out.jsonl", url=redis_url)
    assert result.exit_code == 1
    assert "4 documents, 2 failed, listed in out.jsonl.errors.jsonl;" in result.stderr
    assert read_back(folder / "out.jsonl")[0] == ["1", "4"]
    errors = [json.loads(line) for line in (folder / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert errors == [
        {"line": 2, "id": "2", "reason": "the text is bad", "retryable": False},
        {"line": 3, "id": "3", "reason": errors[1]["reason"], "retryable": False},
    ]
    assert errors[1]["reason"].startswith("line 3: this is not UTF-8, from byte 1 on")
    assert "The first that failed: id '2', the text is bad" in result.stderr
    (folder / "in.txt").write_text("one\n")
    assert run("embed", "in.txt", "-o", "out.jsonl", url=redis_url).exit_code == 0
    assert names(folder) == ["in.txt", "out.jsonl"]


def test_several_files_ids_rows_and_columns_reach_the_output(folder: Path, redis_url: str, worker: StockWorker) -> None:
    (folder / "a.csv").write_text("id,text,lang\nx,one,de\ny,two\nx,three,en\n")
    (folder / "b.jsonl").write_text('{"id": 0, "text": "four"}\n{"id": "0", "text": "five"}\n{"text": "six"}\n')
    result = run("embed", "a.csv", "*.jsonl", "-o", "out.jsonl", "--column", "lang", url=redis_url)
    assert result.exit_code == 1
    *_, repeated, first, summary = result.stderr.splitlines()
    assert repeated.startswith("1 id occurs more than once: 'x' 2 times; all were kept")
    assert first == "The first that failed: a.csv, id 'y', line 3: it has 2 fields, the header has 3"
    assert summary.startswith("6 documents, 1 failed, listed in out.jsonl.errors.jsonl;")
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [(line["id"], line["row"], line["file"], line["lang"]) for line in lines] == [
        ("x", 2, "a.csv", "de"),
        ("x", 4, "a.csv", "en"),
        (0, 1, "b.jsonl", None),
        ("0", 2, "b.jsonl", None),
        (None, 3, "b.jsonl", None),
    ]
    (error,) = [json.loads(line) for line in (folder / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert (error["line"], error["file"], error["id"]) == (3, "a.csv", "y")
    # The second run's pattern matches what the first wrote.
    again = run("embed", "*.jsonl", "-o", "out.jsonl", url=redis_url)
    assert (again.exit_code, "the same file" in again.stderr) == (2, True)
    last = run("embed", "a.csv", "-o", "out.parquet", "--on-duplicate", "last", url=redis_url)
    assert last.exit_code == 1
    assert read_back(folder / "out.parquet")[0] == ["x"]


def test_a_column_that_no_document_has_is_told(folder: Path, redis_url: str, worker: StockWorker) -> None:
    (folder / "in.jsonl").write_text('{"text": "one", "lang": null}\n{"text": "two", "lang": "de"}\n')
    options = ("--column", "lang", "--column", "langg")
    result = run("embed", "in.jsonl", "-o", "out.jsonl", *options, url=redis_url)
    assert result.exit_code == 0
    assert "No document has anything in the field of --column 'langg': is it spelt so?\n" in result.stderr
    assert "--column" not in run("embed", "in.jsonl", "-o", "out.jsonl", *options[:2], url=redis_url).stderr


def test_standard_input_that_is_csv_is_read_as_csv_and_the_guess_is_said(
    folder: Path, redis_url: str, worker: StockWorker
) -> None:
    result = run("embed", "-", "-o", "out.jsonl", url=redis_url, stdin=b"id,text\na,one\n")
    assert result.exit_code == 0
    assert result.stderr.startswith("Reading standard input as CSV, by its first line; --input-format says otherwise.")
    assert read_back(folder / "out.jsonl")[0] == ["a"]
    refused = run("embed", "-", "-o", "out.jsonl", url=redis_url, stdin=b"isbn,blurb\nx,one\n")
    assert (refused.exit_code, "looks like CSV without a column 'text'" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("option", "field"), [("--prompt-name", "prompt_name"), ("--prompt", "prompt")])
def test_prompts_reach_the_worker_and_another_one_is_another_run(
    folder: Path, redis_url: str, option: str, field: str
) -> None:
    asked = []

    def note(function: str, request: dict[str, Any]) -> Any:
        asked.append(request.get(field) if request["input"] == ["one"] else "what model?")
        return honest_work(function, request)

    (folder / "in.txt").write_text("one\n")
    with working(redis_url, note):
        for prompt in ("query", "", "query"):
            typed = ("embed", "in.txt", "-o", "out.npy", "--store", "kept.sqlite", option, prompt)
            assert run(*typed, url=redis_url).exit_code == 0
    assert [each for each in asked if each != "what model?"] == ["query", ""]


def test_sparse_vectors_are_written_as_ids_and_weights(folder: Path, redis_url: str) -> None:
    """Weights to the bit, a text without any too; a run that goes on computes none again."""
    sparse: list[dict[str, Any]] = [{"indices": [3, 70_000], "values": [0.1, 2.5]}, {"indices": [], "values": []}]
    asked = []

    def work(function: str, request: dict[str, Any]) -> Any:
        asked.append(request)
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        data = [sparse[1] if text == "two" else sparse[0] for text in texts]
        return embedding_of(texts) | {"embeddings": {"encoding": "sparse", "data": data}}

    (folder / "in.txt").write_text("one\ntwo\n")
    typed = ("embed", "in.txt", "--sparse", "--store", "kept.sqlite", "--input-type", "query", "--output")
    with working(redis_url, work):
        for name in ("out.jsonl", "out.parquet"):
            assert run(*typed, name, url=redis_url).exit_code == 0
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["embedding"]["indices"] for line in lines] == [each["indices"] for each in sparse]
    assert [np.float32(line["embedding"]["values"]).tolist() for line in lines] == [
        np.float32(each["values"]).tolist() for each in sparse
    ]
    table = pq.read_table(folder / "out.parquet")
    assert table["indices"].to_pylist() == [each["indices"] for each in sparse]
    assert table["values"].to_pylist() == [np.float32(each["values"]).tolist() for each in sparse]
    assert table.schema.metadata[b"impetus.model"] == b"stock-model"
    assert [each["input"] for each in asked if "input_type" in each] == [["one", "two"]]
    assert {each["output"] for each in asked} == {"sparse"}


def test_usage_errors_exit_with_2_before_any_work(folder: Path, redis_url: str, connection: Redis) -> None:
    (folder / "in.txt").write_text("one\n")
    (folder / "in.jsonl").write_text("{}\n")
    for arguments, sentence in {
        ("in.txt", "-o", "out.csv"): "must end in one of .parquet, .jsonl, .npy, .arrow,",
        ("in.txt", "-o", "no/out.npy"): "there is no such folder",
        ("in.txt",): "Missing option '--output'",
        ("no.txt", "-o", "out.npy"): "'no.txt' cannot be read: No such file",
        ("*.csv", "-o", "out.npy"): "no file matches the pattern '*.csv'",
        ("in.txt", "-o", "out.npy", "--text-field", "text"): "--text-field has no effect",
        ("in.jsonl", "-o", "out.npy", "--column", "year"): "a .npy file has no columns",
        ("-", "-o", "out.npy", "--on-duplicate", "last"): "reads INPUT twice",
        ("in.jsonl", "-o", "in.jsonl"): "the same file",
        (".", "-o", "x.npy", "--dimensions", "0"): "not in the range",
        ("in.txt", "-o", "x.npy", "--sparse"): "holds dense vectors and no sparse ones",
        ("in.txt", "-o", "x.jsonl", "--sparse", "--chunk", "9"): "about dense vectors",
        ("in.txt", "-o", "x.jsonl", "--sparse", "--dimensions", "9"): "is for dense vectors",
        ("in.txt", "-o", "x.npy", "--prompt", "x", "--prompt-name", "query"): "give one of them",
        ("in.jsonl", "-o", "x.npy", "--text-field", "a", "--template", "{a}"): "leave --text-field out",
        ("in.jsonl", "-o", "x.npy", "--chunk", "10", "--overlap", "10"): "--overlap 10 must be less than --chunk 10",
    }.items():
        result = run("embed", *arguments, url=redis_url)
        assert (result.exit_code, sentence in result.stderr) == (2, True), result.output
    assert connection.keys() == []
    assert names(folder) == ["in.jsonl", "in.txt"]


def test_an_input_without_documents_is_an_error_and_writes_nothing(folder: Path, redis_url: str) -> None:
    (folder / "in.txt").write_text("")
    result = run("embed", "in.txt", "-o", "out.npy", url=redis_url)
    assert (result.exit_code, "there are no documents" in result.stderr) == (1, True)
    assert names(folder) == ["in.txt"]


def test_ctrl_c_leaves_no_half_file_and_no_job_and_the_next_run_goes_on(
    folder: Path, redis_url: str, connection: Redis
) -> None:
    (folder / "in.txt").write_text("".join(f"text {number}\n" for number in range(100)))
    second, go_on = threading.Event(), threading.Event()
    done = 0
    texts: list[str] = []

    def slow(function: str, request: dict[str, Any]) -> Any:
        nonlocal done
        done += 1
        texts.extend(request["input"])
        if done == 3:
            second.set()
            assert go_on.wait(60)
        return honest_work(function, request)

    with working(redis_url, slow):
        command = [*PROGRAM, "embed", "in.txt", "-o", "out.parquet", "--texts-per-job", "5", "--redis-url", redis_url]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert second.wait(60)
        eventually(lambda: answers_kept(folder / "out.parquet") > 0)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        queued = Queue("embedding-bulk", connection=connection, serializer=JSONSerializer).job_ids
        go_on.set()
        assert process.returncode == 130
        assert "out.parquet is not whole yet. What is done is kept in out.parquet.impetus: run the same" in stderr
        assert "Traceback" not in stderr
        assert queued == []
        assert names(folder) == ["in.txt", "out.parquet.impetus"]
        again = run("embed", "in.txt", "-o", "out.parquet", "--texts-per-job", "5", url=redis_url)
    assert again.exit_code == 0
    assert "Going on with what an earlier run of out.parquet did; --no-resume begins anew.\n" in again.stderr
    ids, vectors = read_back(folder / "out.parquet")
    assert ids == [str(number) for number in range(1, 101)]
    np.testing.assert_array_equal(vectors, [vector_of(f"text {number}") for number in range(100)])
    # The job that ran when Ctrl-C was pressed ended by itself, and was taken up.
    assert sorted(text for text in texts if text.startswith("text")) == sorted(f"text {n}" for n in range(100))
    assert names(folder) == ["in.txt", "out.parquet"]


def test_a_terminal_shows_count_rate_and_time_left(folder: Path, redis_url: str, worker: StockWorker) -> None:
    (folder / "in.txt").write_text("text\n" * 500)
    ours, theirs = pty.openpty()
    command = [*PROGRAM, "embed", "in.txt", "-o", "out.npy", "--redis-url", redis_url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = all_of(ours)
    assert process.wait(60) == 0
    assert b"500/500" in shown
    assert b"docs/s" in shown
