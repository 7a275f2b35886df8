"""Long documents in chunks, and told when they are not read to their end."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from impetus_producer.cli.main import cli
from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import ImpetusError, InvalidRequestError
from impetus_producer.reading.chunks import Chunker, chunked, open_tokenizer
from tests.paths import DATA

from ..stock_worker import RefusedError, embedding_of, vector_of, working
from .test_outputs import read_back

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result
    from tokenizers import Tokenizer

    from impetus_producer.documents import Read

MODEL = DATA / "models" / "tiny-says"
PARAGRAPHS = [
    f"Paragraph {number} is of two sentences, 日本. This is its second one, and ends here." for number in range(12)
]
TEXT = "\n\n".join(PARAGRAPHS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made: Tokenizer = open_tokenizer(str(MODEL))
    return made


def embed(url: str, *more: str, source: str = "in.jsonl", output: str = "out.jsonl") -> Result:
    arguments = ["embed", source, "-o", output, "--progress", "none", *more]
    return CliRunner().invoke(cli, arguments, env={"IMPETUS_REDIS_URL": url})


def test_chunks_have_no_more_tokens_than_asked_and_leave_no_word_out(tokenizer: Tokenizer) -> None:
    spans = Chunker(tokenizer, 60).spans(TEXT)
    pieces = [TEXT[start:end] for start, end in spans]
    assert len(pieces) > 3
    assert max(len(tokenizer.encode(piece).ids) for piece in pieces) <= 60
    assert "".join("".join(pieces).split()) == "".join(TEXT.split())
    # Where a paragraph or a sentence has room, it is not cut.
    assert all(piece.endswith((".", "日本.")) for piece in pieces)


def test_with_an_overlap_each_chunk_begins_with_the_end_of_the_one_before(tokenizer: Tokenizer) -> None:
    text = "One. Two. Three. " * 40
    spans = Chunker(tokenizer, 60, 30).spans(text)
    assert len(spans) > len(Chunker(tokenizer, 60).spans(text))
    assert all(start < before for (_, before), (start, _) in pairwise(spans))
    assert spans[-1][1] == len(text.rstrip())


def test_a_text_without_words_is_one_chunk_and_what_failed_stays_what_it_is(tokenizer: Tokenizer) -> None:
    chunker = Chunker(tokenizer, 60)
    failed = FailedDocument("b", "unreadable", 2)
    documents: list[Read] = [Document("a", " \n ", 1, columns=("x",)), failed, Document("c", "", 3)]
    assert list(chunked(documents, chunker)) == [
        Document("a", " \n ", 1, columns=("x", 0, 0, 3)),
        failed,
        Document("c", "", 3, columns=(0, 0, 0)),
    ]


def test_what_cannot_be_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for tokens, overlap in ((10, 10), (1, 1)):
        with pytest.raises(InvalidRequestError, match="must be less"):
            Chunker(tokenizer, tokens, overlap)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ImpetusError, match=r"cannot be had: .*; give its folder"):
        open_tokenizer(str(tmp_path))


def test_every_chunk_is_a_row_with_its_place_in_the_text(folder: Path, redis_url: str) -> None:
    (folder / "in.jsonl").write_text(
        json.dumps({"id": "long", "text": TEXT, "lang": "en"}) + "\n" + json.dumps({"id": "short", "text": "hello"})
    )
    with working(redis_url):
        result = embed(redis_url, "--chunk", "60", "--tokenizer", str(MODEL), "--column", "lang")
        pooled = embed(
            redis_url, "--chunk", "60", "--tokenizer", str(MODEL), "--pool-chunks", "mean", output="pooled.npy"
        )
    assert (result.exit_code, pooled.exit_code) == (0, 0), result.output + pooled.output
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    *chunks, short = lines
    assert (short["id"], short["lang"], short["chunk"], short["start"], short["end"]) == ("short", None, 0, 0, 5)
    assert [chunk["chunk"] for chunk in chunks] == list(range(len(chunks)))
    assert {(chunk["id"], chunk["row"], chunk["lang"]) for chunk in chunks} == {("long", 1, "en")}
    vectors = [vector_of(TEXT[chunk["start"] : chunk["end"]]) for chunk in chunks]
    np.testing.assert_array_equal(np.array([chunk["embedding"] for chunk in chunks], np.float32), vectors)
    ids, matrix = read_back(folder / "pooled.npy")
    assert ids == ["long", "short"]
    mean = np.mean(vectors, axis=0)
    np.testing.assert_allclose(matrix[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_array_equal(matrix[1], vector_of("hello"))


def test_a_document_one_of_whose_chunks_fails_has_no_pooled_vector(folder: Path, redis_url: str) -> None:
    (folder / "in.jsonl").write_text(json.dumps({"id": "a", "text": TEXT}) + '\n{"id": "b", "text": "hello"}\n')

    def refuses(function: str, request: dict[str, Any]) -> Any:
        if any("Paragraph 7" in text for text in request["input"]):
            raise RefusedError("input: item 0 is bad")
        return embedding_of(request["input"])

    options = ("--chunk", "60", "--tokenizer", str(MODEL))
    with working(redis_url, refuses):
        rows = embed(redis_url, *options)
        pooled = embed(redis_url, *options, "--pool-chunks", "mean", output="pooled.jsonl")
    assert (rows.exit_code, pooled.exit_code) == (1, 1)
    assert read_back(folder / "pooled.jsonl")[0] == ["b"]
    (error,) = [json.loads(line) for line in (folder / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert error["reason"].startswith("chunk ")
    assert error["reason"].endswith(": the text is bad")


def test_the_model_that_is_served_tells_the_tokenizer(folder: Path, redis_url: str) -> None:
    (folder / "in.jsonl").write_text(json.dumps({"id": "a", "text": TEXT}))

    def named(function: str, request: dict[str, Any]) -> Any:
        texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
        return embedding_of(texts) | {"model": str(MODEL)}

    with working(redis_url, named):
        assert embed(redis_url, "--chunk", "60").exit_code == 0
    assert len(read_back(folder / "out.jsonl")[0]) > 3


def test_options_about_chunks_are_checked_before_any_work(folder: Path, redis_url: str) -> None:
    (folder / "in.jsonl").write_text("{}")
    for options, sentence in (
        (("--overlap", "3"), "add --chunk TOKENS"),
        (("--pool-chunks", "mean"), "add --chunk TOKENS"),
        (("--chunk", "60", "--column", "start"), "chunks have a column 'start' of their own"),
    ):
        result = embed(redis_url, *options)
        assert (result.exit_code, sentence in result.stderr) == (2, True)
    result = embed(redis_url, "--chunk", "60", output="out.npy")
    assert (result.exit_code, "a .npy file has no columns" in result.stderr) == (2, True)
