"""Sparse embeddings as the producer asks for them and reads them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from impetus_producer import AsyncProducer, EmbeddingResult, InvalidRequestError
from impetus_producer.bodies.embeddings import EmbeddingsBody, embedding_answer, embedding_payload
from impetus_producer.cli.jobs import print_result
from impetus_producer.contract import SparseBlock
from impetus_producer.enqueueing.parsing import parse_request
from impetus_producer.testing import FakeWorker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fake() -> Iterator[FakeWorker]:
    with FakeWorker() as worker:
        yield worker


def test_sparse_vectors_come_back_one_a_text_by_a_thread_a_task_and_a_handle_made_anew(fake: FakeWorker) -> None:
    handle = fake.producer.embed(["fox fox", "", "dog fox"], output="sparse")
    made = handle.result(10).sparse
    assert [each.values for each in made] == [[2.0], [], [1.0, 1.0]]
    assert set(made[0].indices) < set(made[2].indices)
    assert fake.producer.handle(handle.job_id).result(10) == handle.result(10)

    async def ask() -> EmbeddingResult:
        async with AsyncProducer(connection=fake.connection, patience_s=0) as producer:
            return await (await producer.embed(["fox fox", "", "dog fox"], output="sparse")).result(10)

    assert asyncio.run(ask()).sparse == made
    many = list(fake.producer.embed_many(["fox", "dog", "a"], texts_per_job=2, output="sparse"))
    assert [len(each.result(10).sparse) for each in many] == [2, 1]


@pytest.mark.parametrize("fields", [{"dimensions": 3}, {"encoding_format": "raw"}, {"encoding_format": "float"}])
def test_what_is_for_dense_vectors_is_refused_before_it_is_sent(fields: dict[str, Any], fake: FakeWorker) -> None:
    with pytest.raises(InvalidRequestError, match="is for dense vectors, and 'output' is sparse"):
        fake.producer.embed("a", output="sparse", **fields)
    assert fake.jobs == []


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        ({"indices": [1, 2], "values": [1.0]}, "1 values are not one for each of 2 indices"),
        ({"indices": [-1], "values": [1.0]}, "greater than or equal to 0"),
        ({"indices": [2**31], "values": [1.0]}, "less than"),
        ({"indices": [1], "values": [float("nan")]}, "finite"),
        ({"indices": [1]}, "Field required"),
    ],
)
def test_a_block_that_holds_something_else_is_no_result(vector: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SparseBlock.model_validate({"encoding": "sparse", "data": [vector]})


def test_openais_body_asks_for_them_too_and_is_answered_in_its_shape(
    fake: FakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    body = parse_request(EmbeddingsBody, {"input": ["fox dog"], "output": "sparse", "encoding_format": "base64"})
    payload = embedding_payload(body)
    assert payload == {"input": ["fox dog"], "output": "sparse"}
    result = fake.producer.embed(**payload).result(10)
    said = json.loads(b"".join(embedding_answer(result, "base64")))
    (vector,) = result.sparse
    assert said["data"] == [{"object": "embedding", "index": 0, "embedding": vector.model_dump()}]
    print_result(result, as_json=False)
    print_result(result, as_json=True)
    line, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert line == vector.model_dump() == whole["embeddings"]["data"][0]
