"""Rerank jobs: batched across jobs, each with its own end, and through a real worker as CrossEncoder scores."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.protocol import Embedded, EngineInfo, Rejected
from impetus_producer import JobFailedError, Producer
from impetus_producer.contract import RERANK_FUNCTION, RerankResult
from impetus_worker.allowed import NOTHING
from impetus_worker.batches.embedding import EmbeddingBatcher
from impetus_worker.batches.reading.rows import RerankRequests
from impetus_worker.batches.results import RerankResults
from impetus_worker.errors import PoisonedJobError
from impetus_worker.leases.claims import ClaimedJob
from impetus_worker.leases.outcomes import Failed, Finished
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

from ..batches.batching import IDS, Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.protocol import EmbeddingWork
    from impetus_worker.leases.outcomes import Outcome

    from ..conftest import Fleet

INFO = EngineInfo(
    kind="rerank", backend="fake", device="fake", model="m", model_aliases=("m",), fingerprint="f", precision="fp32",
    dimensions=1, max_tokens=8,
)  # fmt: skip
MODEL = DATA / "rerankers" / "bert"


class TwoTokensAndTheDocument:
    """Words of documents are numbers, and tokens are these numbers."""

    def encode(self, query: str, documents: Sequence[str], *, max_document_tokens: int | None = None) -> list[Encoded]:
        return [self._row(query, [int(word) for word in text.split()], max_document_tokens) for text in documents]

    def _row(self, query: str, words: list[int], most: int | None) -> Encoded:
        row = [1, len(query), *words[:most]][: INFO.max_tokens]
        return Encoded(np.array(row, dtype=np.int32), 2 + len(words) - len(row))


@pytest.fixture
def batcher() -> EmbeddingBatcher:
    requests = RerankRequests(INFO, [TwoTokensAndTheDocument()], NOTHING)
    return EmbeddingBatcher(
        requests, RerankResults("w"), max_batch_texts=8, max_batch_tokens=80, max_wait_s=0.0,
        clock=lambda: 0.0,
    )  # fmt: skip


def job(documents: list[Any], query: str = "q", **fields: Any) -> ClaimedJob:
    payload = {"query": query, "documents": documents, **fields}
    data = json.dumps([RERANK_FUNCTION, None, [payload], {}]).encode()
    return ClaimedJob(f"job{next(IDS)}", "e", "rerank", {b"data": data, b"timeout": b"180"}, 0.0)


def given(batcher: EmbeddingBatcher) -> EmbeddingWork:
    work = batcher.next_work(1000.0)
    assert work is not None
    return work


def scored(work: EmbeddingWork) -> Embedded:
    """The score of a document is its last token."""
    return Embedded(work.id, np.array([[row[-1]] for row in work.rows], np.float32), 0.001)


def ranking(outcome: Outcome) -> RerankResult:
    assert isinstance(outcome, Finished)
    return RerankResult.model_validate_json(json.dumps(outcome.whole()))


def test_documents_of_many_jobs_are_one_batch_and_each_job_has_its_own_order(batcher: EmbeddingBatcher) -> None:
    jobs = [job(["3", "9", "5"]), job(["7", {"text": "8"}, "8"], query="other", top_n=2, return_documents=True)]
    batcher.add(jobs)
    assert batcher.read(0.0) == []
    work = given(batcher)
    assert len(work.rows) == 6
    first, second = map(ranking, batcher.absorb(scored(work), 1000.0))
    assert [(each.index, each.relevance_score, each.document) for each in first.results] == [
        (1, 9.0, None), (2, 5.0, None), (0, 3.0, None),
    ]  # fmt: skip
    assert [(each.index, each.document.text) for each in second.results if each.document] == [(1, "8"), (2, "8")]
    assert (first.model, first.usage.prompt_tokens, first.provenance.backend) == ("m", 9, "fake")


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"query": "q", "documents": []}, "documents: the list is empty"),
        ({"query": "q", "documents": "one"}, "documents: must be a list of strings"),
        ({"query": "q", "documents": ["1", 2]}, "documents: item 1 must be a string, not a number"),
        ({"query": "q", "documents": [{"text": "1", "title": "t"}]}, "item 0: an object has a text and nothing else"),
        ({"query": "q", "documents": ["1"] * 2049}, "documents: 2049 documents are more than the 2048"),
        ({"query": ["q"], "documents": ["1"]}, "query: the query must be a string, not a list"),
        ({"query": "q" * 10_000_001, "documents": ["1"]}, "query: the query is longer than 10,000,000 bytes"),
        ({"query": "q", "documents": ["1"], "top_n": 0}, "top_n: "),
        ({"query": "q", "documents": ["1"], "max_tokens_per_doc": 3, "truncate": False}, "max_tokens_per_doc: cuts"),
        ({"query": "q", "documents": ["1"], "model": "another"}, "model: this worker serves m and not 'another'"),
        ({"query": "q", "documents": ["1"], "rank_fields": ["a"]}, "rank_fields: there is no such field"),
        ({"query": "q", "documents": ["1", "1 2 3 4 5 6 7"], "truncate": False}, "documents: item 1 is longer than"),
        ({"query": "q", "documents": ["1", "not a number"]}, "documents: item 1 cannot be read: the tokenizer of m"),
    ],
)
def test_a_bad_request_fails_alone_with_a_sentence_that_names_the_field(
    request_: dict[str, Any], sentence: str, batcher: EmbeddingBatcher
) -> None:
    bad, good = job(["1"]), job(["4"])
    bad.fields[b"data"] = json.dumps([RERANK_FUNCTION, None, [request_], {}]).encode()
    batcher.add([bad, good])
    (outcome,) = batcher.read(0.0)
    assert isinstance(outcome, Failed)
    assert outcome.job is bad
    assert sentence in str(outcome.error)
    assert [each.job for each in batcher.absorb(scored(given(batcher)), 1000.0)] == [good]


def test_of_a_batch_that_is_refused_the_one_document_to_blame_is_found(batcher: EmbeddingBatcher) -> None:
    jobs = [job(["1", "2"]), job(["13"]), job(["3"])]
    batcher.add(jobs)
    batcher.read(0.0)
    outcomes: list[Outcome] = []
    while (work := batcher.next_work(1000.0)) is not None:
        bad = any(13 in row for row in work.rows)
        outcomes += batcher.absorb(Rejected(work.id, "no") if bad else scored(work), 1000.0)
    ends = {outcome.job.id: type(outcome) for outcome in outcomes}
    assert ends == {jobs[0].id: Finished, jobs[1].id: Failed, jobs[2].id: Finished}


def test_a_document_that_kills_the_engine_again_and_again_fails_its_job_by_name(batcher: EmbeddingBatcher) -> None:
    doomed, neighbour = job(["1", "13"]), job(["2"])
    batcher.add([doomed, neighbour])
    batcher.read(0.0)
    outcomes: list[Outcome] = []
    while (work := batcher.next_work(1000.0)) is not None:
        if any(13 in row for row in work.rows):
            outcomes += batcher.engine_died(1000.0, suspect=True)
        else:
            outcomes += batcher.absorb(scored(work), 1000.0)
    failed = next(outcome for outcome in outcomes if isinstance(outcome, Failed))
    assert failed.job is doomed
    assert isinstance(failed.error, PoisonedJobError)
    assert "documents: the engine died each time it ran item 1" in str(failed.error)
    assert [outcome.job for outcome in outcomes if isinstance(outcome, Finished)] == [neighbour]


@pytest.mark.system
def test_a_worker_reranks_as_cross_encoder_does_whatever_else_is_asked_of_it(fleet: Fleet) -> None:
    texts, by_model = recorded_texts(), recorded("rerankers")
    asked = ("--more-rerank-models", str(DATA / "rerankers" / "qwen3"))
    fleet.start("--rerank-model", str(MODEL), *asked, "--rerank-backend", "cpu", roles="rerank", wait=False)
    producer = Producer(fleet.url)
    handles = [producer.rerank(str(query), texts, bulk=number == 1) for number, query in enumerate(by_model["queries"])]
    long = producer.rerank("fox", ["ordinary words " * 5_000, "the lazy dog"], return_documents=True, top_n=1)
    unknown = producer.rerank("fox", ["a"], model="another")
    by_yes_and_no = producer.rerank(str(by_model["queries"][0]), texts, model="qwen3")
    scores = np.empty((len(handles), len(texts)))
    for number, handle in enumerate(handles):
        results = handle.result(120).results
        assert [each.relevance_score for each in results] == sorted((e.relevance_score for e in results), reverse=True)
        for each in results:
            scores[number, each.index] = each.relevance_score
    assert np.abs(scores.ravel() - by_model["bert/scores"]).max() < 1e-4
    (best,) = long.result(60).results
    assert best.document is not None
    usage = long.result(60).usage
    assert usage.truncated_documents == 1
    assert usage.truncated_tokens > 9_000
    with pytest.raises(JobFailedError, match="serves bert, qwen3 and not 'another'"):
        unknown.result(60)
    expected = recorded("yes_no")["scores"]
    for each in by_yes_and_no.result(60).results:
        assert abs(each.relevance_score - expected[each.index]) < 1e-4
    again = producer.handle(handles[0].job_id).result(60)
    assert isinstance(again, RerankResult)
    assert again.provenance.backend == "cpu"


@pytest.mark.system
def test_jobs_outlive_the_worker_that_reranks_them_and_a_document_that_kills_its_engine(fleet: Fleet) -> None:
    fleet.start("--rerank-backend", "simulated", "--simulated-a-ms", "20", roles="rerank")
    producer = Producer(fleet.url)
    handles = [producer.rerank(f"query {number}", [f"document {each}" for each in range(30)]) for number in range(20)]
    handles[3].result(60)
    os.kill(fleet.worker_pid("rerank"), signal.SIGKILL)
    poison = producer.rerank("query", ["a", "simulate:crash"])
    long = producer.rerank("query", ["word " * 50_000, "b"])
    for number, handle in enumerate(handles):
        results = handle.result(60).results
        assert len({each.index for each in results}) == 30, number
        assert all(0 <= each.relevance_score <= 1 for each in results)
    with pytest.raises(JobFailedError, match="documents: the engine died each time it ran item 1"):
        poison.result(60)
    assert long.result(60).usage.truncated_documents == 1
