"""Sparse embeddings through the batcher and the queue: beside dense ones, each in batches of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.protocol import Embedded, Rejected, SparseVector
from impetus_producer import EmbeddingResult, JobFailedError, Producer
from impetus_worker.allowed import NOTHING
from impetus_worker.batches.embedding import EmbeddingBatcher
from impetus_worker.batches.reading.rows import EmbeddingRequests
from impetus_worker.batches.results import EmbeddingResults
from impetus_worker.leases.outcomes import Finished
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

from ..batches.batching import INFO, OneTokenAWord, error, given, job, run, take, vectors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from impetus_backends.protocol import EmbeddingWork
    from impetus_worker.leases.outcomes import Outcome

    from ..conftest import Fleet

BOTH = replace(INFO, outputs=("dense", "sparse"), packs=True)


def batcher_for(info: Any = BOTH) -> EmbeddingBatcher:
    requests, results = EmbeddingRequests(info, [OneTokenAWord()], NOTHING), EmbeddingResults("w")
    return EmbeddingBatcher(
        requests, results, max_batch_texts=8, max_batch_tokens=80, max_wait_s=0.0, clock=lambda: 0.0
    )


def weighed(work: EmbeddingWork) -> Embedded:
    """Each token weighs a third of itself."""
    assert work.output == "sparse"
    tokens = [np.unique(row) for row in work.rows]
    sparse = [SparseVector(each.astype(np.int32), (each / 3).astype(np.float32)) for each in tokens]
    return Embedded(work.id, np.empty((0, 0), np.float32), 0.001, sparse=sparse)


def sparse(outcome: Outcome) -> list[dict[int, float]]:
    assert isinstance(outcome, Finished)
    result = EmbeddingResult.model_validate(json.loads(outcome.result), strict=False)
    return [dict(zip(each.indices, each.values, strict=True)) for each in result.sparse]


def test_sparse_and_dense_texts_of_many_jobs_run_in_batches_of_their_own() -> None:
    batcher = batcher_for()
    jobs = [job("7 9 7", "8", output="sparse"), job("5"), job("4", output="sparse"), job("6", output="dense")]
    assert take(batcher, jobs) == []
    ended: dict[str, Outcome] = {}
    sizes = []
    while (work := batcher.next_work(1000.0)) is not None:
        sizes.append((work.output, len(work.rows)))
        for outcome in batcher.absorb(weighed(work) if work.output == "sparse" else run(work), 1000.0):
            ended[outcome.job.id] = outcome
    assert sorted(sizes) == [("dense", 2), ("sparse", 3)]
    seven, nine, eight, four = (float(str(np.float32(token / 3))) for token in (7, 9, 8, 4))
    assert sparse(ended[jobs[0].id]) == [{7: seven, 9: nine}, {8: eight}]
    assert sparse(ended[jobs[2].id]) == [{4: four}]
    assert [vectors(ended[each.id]) for each in (jobs[1], jobs[3])] == [[[1, 5, 0, 0]], [[1, 6, 0, 0]]]


def test_a_text_of_no_weights_has_an_empty_vector() -> None:
    batcher = batcher_for()
    take(batcher, [job("7", output="sparse")])
    work = given(batcher)
    none = SparseVector(np.empty(0, np.int32), np.empty(0, np.float32))
    (outcome,) = batcher.absorb(Embedded(work.id, np.empty((0, 0), np.float32), 0.001, sparse=[none]), 1000.0)
    assert sparse(outcome) == [{}]


def test_of_a_sparse_batch_that_is_refused_the_one_text_to_blame_is_found() -> None:
    batcher = batcher_for()
    jobs = [job("1", "2", output="sparse"), job("13", output="sparse"), job("3", output="sparse")]
    take(batcher, jobs)
    outcomes: list[Outcome] = []
    while (work := batcher.next_work(1000.0)) is not None:
        bad = any(13 in row for row in work.rows)
        outcomes += batcher.absorb(Rejected(work.id, "no") if bad else weighed(work), 1000.0)
    failed = [outcome.job for outcome in outcomes if not isinstance(outcome, Finished)]
    assert (failed, len(outcomes)) == ([jobs[1]], 3)


@pytest.mark.parametrize(
    ("info", "fields", "sentence"),
    [
        (INFO, {"output": "sparse"}, "output: m has no head for sparse embeddings"),
        (replace(INFO, no_sparse="says why"), {"output": "sparse"}, "output: m says why"),
        (replace(INFO, outputs=("sparse",), dimensions=0), {}, "output: m makes sparse embeddings alone"),
        (BOTH, {"output": "sparse", "dimensions": 2}, "dimensions: is for dense vectors, and 'output' is sparse"),
        (BOTH, {"output": "sparse", "encoding_format": "raw"}, "encoding_format: is for dense vectors"),
        (BOTH, {"output": "late"}, "output: Input should be 'dense' or 'sparse'"),
    ],
)
def test_what_a_model_does_not_make_is_refused_alone(info: Any, fields: dict[str, Any], sentence: str) -> None:
    batcher = batcher_for(info)
    (outcome,) = take(batcher, [job("1", **fields)])
    assert sentence in str(error(outcome))


@pytest.mark.system
def test_one_worker_makes_both_kinds_of_vectors_through_the_queue_as_they_were_recorded(fleet: Fleet) -> None:
    models = [str(DATA / "sparse" / name) for name in ("bge-m3", "bert")]
    options = ("--embedding-model", models[0], "--more-embedding-models", models[1])
    fleet.start("--embedding-backend", "cpu", *options, wait=False)
    producer = Producer(connection=fleet.connection)
    texts = recorded_texts()
    weights = recorded("sparse")
    dense = producer.embed(texts)
    lexical = [producer.embed(text, output="sparse") for text in texts]
    splade = list(producer.embed_many(texts, texts_per_job=7, output="sparse", model="bert", input_type="query"))
    refused = producer.embed("fox", model="bert")
    long = producer.embed("ordinary words " * 50, output="sparse")
    assert np.abs(np.asarray(dense.result(120).vectors) - weights["bge-m3/dense"]).max() < 1e-4
    for handles, expected in ((lexical, weights["bge-m3/plain"]), (splade, weights["bert/query"])):
        made = list(_spread((handle.result(60) for handle in handles), expected.shape[1]))
        assert np.abs(np.array(made) - expected).max() < 1e-4
    with pytest.raises(JobFailedError, match="output: bert makes sparse embeddings alone: ask for these"):
        refused.result(60)
    assert long.result(60).usage.truncated_texts == 1
    again = producer.handle(lexical[3].job_id).result(60)
    assert isinstance(again, EmbeddingResult)
    assert (again.model, again.provenance.backend) == ("bge-m3", "cpu")
    with pytest.raises(ValueError, match="are sparse: read its 'sparse'"):
        _ = again.vectors
    with pytest.raises(ValueError, match="are dense: read its 'vectors'"):
        _ = dense.result(60).sparse


def _spread(results: Iterable[EmbeddingResult], width: int) -> Iterable[np.ndarray]:
    for result in results:
        for vector in result.sparse:
            row = np.zeros(width, np.float32)
            row[vector.indices] = vector.values
            yield row
