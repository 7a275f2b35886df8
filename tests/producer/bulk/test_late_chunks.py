"""`--late-chunking`: documents go to the model as a whole, and each of their chunks is a row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from impetus_producer.cli.main import cli
from tests.paths import DATA

from ..stock_worker import RefusedError, embedding_of, vector_of, working

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

MODEL = DATA / "models" / "tiny-says"
OPTIONS = ("--chunk", "60", "--tokenizer", str(MODEL), "--late-chunking")
SENTENCE = "Sentence {} of {}, which is not long. "


def text_of(name: str, sentences: int) -> str:
    return "".join(SENTENCE.format(number, name) for number in range(sentences))


def in_context(text: str, begin: int, end: int) -> str:
    return f"{text[begin:end]} within {text}"


class Reader:
    """A worker whose vectors of chunks are of the chunk and of the whole text. Keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, function: str, request: dict[str, Any]) -> Any:
        if "chunks" not in request:
            return embedding_of([request["input"]] if isinstance(request["input"], str) else request["input"])
        self.asked.append(request)
        for index, text in enumerate(request["input"]):
            if "too long" in text:
                raise RefusedError(f"input: item {index} is longer than the 256 tokens that m reads")
        pairs = list(zip(request["input"], request["chunks"], strict=True))
        result = embedding_of([in_context(text, *span) for text, spans in pairs for span in spans])
        return result | {"chunks": [len(spans) for _, spans in pairs]}


def embed(url: str, *more: str, output: str = "out.jsonl") -> Result:
    arguments = ["embed", "in.jsonl", "-o", output, "--progress", "none", "--redis-url", url, *more]
    return CliRunner().invoke(cli, arguments)


def write(folder: Path, *texts: str) -> None:
    lines = [json.dumps({"id": f"id-{number}", "text": text}) for number, text in enumerate(texts)]
    (folder / "in.jsonl").write_text("\n".join(lines))


def test_each_chunk_is_a_row_with_its_vector_in_the_whole_text(folder: Path, redis_url: str) -> None:
    texts = [text_of("one", 12), "short", text_of("two", 5), text_of("one", 12)]
    write(folder, *texts)
    reader = Reader()
    with working(redis_url, reader):
        done = embed(redis_url, *OPTIONS, "--store", "store.sqlite")
        again = embed(redis_url, *OPTIONS, "--store", "store.sqlite", output="again.jsonl")
    assert done.exit_code == 0, done.output
    assert again.exit_code == 0, again.output
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["id"] for row in rows)) == [f"id-{number}" for number in range(4)]
    for number, text in enumerate(texts):
        own = [row for row in rows if row["id"] == f"id-{number}"]
        assert [row["chunk"] for row in own] == list(range(len(own)))
        for row in own:
            np.testing.assert_allclose(row["embedding"], vector_of(in_context(text, row["start"], row["end"])))
    assert len([row for row in rows if row["id"] == "id-0"]) > 2
    # Equal documents are computed once, and what a store has is not computed at all.
    assert [text for request in reader.asked for text in request["input"]] == texts[:3]
    assert (folder / "again.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()


def test_a_document_that_is_too_long_fails_alone_and_says_so(folder: Path, redis_url: str) -> None:
    write(folder, text_of("one", 4), text_of("too long", 9), "short")
    with working(redis_url, Reader()):
        done = embed(redis_url, *OPTIONS)
    assert done.exit_code == 1
    (error,) = [json.loads(line) for line in (folder / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert error["id"] == "id-1"
    assert error["reason"] == "the text is longer than the 256 tokens that m reads"
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["id"] for row in rows)) == ["id-0", "id-2"]


def test_a_job_carries_no_more_chunks_than_it_may(folder: Path, redis_url: str) -> None:
    write(folder, *(text_of(str(number), 300) for number in range(20)), text_of("vast", 5000))
    reader = Reader()
    with working(redis_url, reader):
        done = embed(redis_url, *OPTIONS)
    assert done.exit_code == 1, done.output
    counts = [sum(map(len, request["chunks"])) for request in reader.asked]
    assert len(counts) > 1
    assert max(counts) <= 2048
    (error,) = [json.loads(line) for line in (folder / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert "2,048 is the most of a text that is read whole" in error["reason"]


def test_a_model_that_refuses_ends_the_run(folder: Path, redis_url: str) -> None:
    write(folder, "one", "two")

    def refuses(function: str, request: dict[str, Any]) -> Any:
        raise RefusedError("chunks: m makes no vectors of them: it pools by cls, and a chunk is the mean of its tokens")

    with working(redis_url, refuses):
        done = embed(redis_url, *OPTIONS)
    assert done.exit_code == 1
    assert "it pools by cls" in done.output
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--late-chunking",), "add --chunk TOKENS"),
        ((*OPTIONS, "--pool-chunks", "mean"), "give one of the two"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder: Path, options: tuple[str, ...], says: str) -> None:
    write(folder, "one")
    done = CliRunner().invoke(cli, ["embed", "in.jsonl", "-o", "out.jsonl", *options])
    assert done.exit_code == 2
    assert says in done.output
