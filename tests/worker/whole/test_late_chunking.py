"""Late chunking through batches and the queue: a job names chunks, and has a vector for each out of the whole text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.protocol import Embedded, EmbeddingWork
from impetus_producer import InvalidRequestError, JobFailedError, Producer
from impetus_producer.contract import EmbeddingResult
from impetus_worker.leases.outcomes import Failed, Finished
from tests.backends.conftest import small_model

from ..batches.batching import job, make_batcher, take, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..conftest import Fleet


def embedded(work: EmbeddingWork) -> Embedded:
    """A vector is the mean of its tokens, and how many there are."""
    vectors = []
    for row, spans in zip(work.rows, work.chunks or [()] * len(work.rows), strict=True):
        for begin, end in spans or [(0, len(row))]:
            vectors.append([row[begin:end].mean(), end - begin, 0, 0])
    return Embedded(work.id, np.array(vectors, dtype=np.float32), 0.01)


def results(outcomes: Sequence[Any]) -> dict[str, EmbeddingResult]:
    return {each.job.id: EmbeddingResult.model_validate(json.loads(each.result), strict=False) for each in outcomes}


def test_jobs_with_chunks_and_without_share_batches_and_each_gets_its_own() -> None:
    batcher = make_batcher(max_tokens=12, max_rows=4)
    with_chunks = job("1 2 3 4", "5 5", chunks=[[(0, 3), (4, 7), (2, 5)], [(0, 1)]])
    without = job("7 7 7", "9")
    assert not take(batcher, [with_chunks, without])
    done: list[Any] = []
    works = 0
    while (work := batcher.next_work(1.0)) is not None:
        works += 1
        done += batcher.absorb(embedded(work), 1.0)
    assert works < 4
    assert all(isinstance(each, Finished) for each in done)
    made = results(done)
    expected = np.array([[1.5, 2], [3.5, 2], [2.5, 2], [5, 1]])
    np.testing.assert_allclose(np.asarray(made[with_chunks.id].vectors)[:, :2], expected)
    assert made[with_chunks.id].chunks == [3, 1]
    np.testing.assert_allclose(np.asarray(made[without.id].vectors)[:, :2], [[7, 3], [9, 1]])
    assert made[without.id].chunks is None


@pytest.mark.parametrize(
    ("texts", "chunks", "says"),
    [
        (["1 2"], [[(0, 4)]], "item 0 ends at 4, and its text at 3"),
        (["1 2", "3"], [[(0, 1)]], "are of 1 texts, and there are 2"),
        (["1 2"], [[]], "item 0 is empty"),
        (["1 2"], [[(2, 1)]], "not \\[begin, end\\]"),
        (["1 2"], [[(1, 2)]], "item 0 has no token in its chunk 0"),
        ([words(51)], [[(0, 1)]], "item 0 is longer than the 50 tokens that m reads"),
    ],
)
def test_chunks_that_make_no_sense_fail_their_job_alone(texts: list[str], chunks: Any, says: str) -> None:
    batcher = make_batcher()
    good = job("1 2", chunks=[[(0, 1)]])
    (failed,) = take(batcher, [job(*texts, chunks=chunks), good])
    assert isinstance(failed, Failed)
    with pytest.raises(Exception, match=says):
        raise failed.error
    work = batcher.next_work(1.0)
    assert work is not None
    assert [each.job.id for each in batcher.absorb(embedded(work), 1.0)] == [good.id]


@pytest.mark.system
def test_the_vectors_of_chunks_through_the_queue_are_those_that_the_reference_makes_alone(fleet: Fleet) -> None:
    folder = small_model("e5")
    models = ("--embedding-model", str(folder), "--more-embedding-models", str(small_model("bge")))
    fleet.start(*models, "--embedding-backend", "cpu", wait=False)
    producer = Producer(fleet.url)
    texts = [f"The fox {number} jumps. Dogs run!" for number in range(20)]
    chunks = [[(0, text.index(".") + 1), (text.index("Dogs"), len(text))] for text in texts]
    one = [producer.embed([text], chunks=[spans]) for text, spans in zip(texts, chunks, strict=True)]
    together = producer.embed(texts, chunks=chunks, encoding_format="raw", dimensions=8).result(120)
    reference = make_backend("numpy", folder)
    assert isinstance(reference, NumpyEmbeddingBackend)
    reference.load()
    rows = TextEncoder.load(folder).encode_chunks(list(zip(texts, chunks, strict=True)))
    expected = np.concatenate([reference.embed_chunks([row.ids], [row.chunks]) for row in rows])
    made = np.concatenate([handle.result(120).vectors for handle in one])
    np.testing.assert_allclose(made, expected, atol=1e-5)
    first = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(together.vectors, first, atol=1e-5)
    assert together.chunks == [2] * len(texts)
    refused = producer.embed("one", chunks=[[(0, 3)]], model="bge")
    with pytest.raises(JobFailedError, match="makes no vectors of them: it pools by cls"):
        refused.result(120)
    with pytest.raises(InvalidRequestError, match="chunks"):
        producer.embed("one", chunks=[])
