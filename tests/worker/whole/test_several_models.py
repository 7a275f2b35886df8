"""One worker serves several embedding models: each batch is of one, and results say which."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.protocol import Embedded, Parked
from impetus_producer import Producer
from impetus_producer.errors import JobFailedError
from impetus_producer.watching.fleet import read_fleet
from impetus_worker.allowed import NOTHING
from impetus_worker.batches.batcher import LOADING_PATIENCE_S
from impetus_worker.batches.embedding import EmbeddingBatcher
from impetus_worker.batches.reading.rows import EmbeddingRequests
from impetus_worker.batches.results import EmbeddingResults
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

from ..batches.batching import INFO, OneTokenAWord, error, job, take, words

if TYPE_CHECKING:
    from ..conftest import Fleet

OTHER = replace(INFO, model="other", model_aliases=("other",), fingerprint="", backend="", dimensions=6, max_tokens=9)
BOTH = replace(INFO, model_aliases=(*INFO.model_aliases, "other"), others=(OTHER,))


def make_batcher() -> EmbeddingBatcher:
    requests = EmbeddingRequests(BOTH, [OneTokenAWord(), OneTokenAWord()], NOTHING)
    return EmbeddingBatcher(
        requests, EmbeddingResults("w"), max_batch_texts=8, max_batch_tokens=80, max_wait_s=0.0, clock=lambda: 0.0
    )


def test_a_batch_is_of_one_model_and_its_results_say_by_what_they_were_made() -> None:
    batcher = make_batcher()
    jobs = [job(words(3), model=name) for name in ("m", "other", "m", "other", "org/m")]
    assert take(batcher, jobs, 0.0) == []
    results = []
    by = replace(OTHER, backend="loaded", fingerprint="print")
    sizes = {}
    while (work := batcher.next_work(1.0)) is not None:
        sizes[work.model] = len(work.rows)
        wide = BOTH.dimensions if work.model == "m" else OTHER.dimensions
        made = Embedded(
            work.id, np.zeros((len(work.rows), wide), np.float32), 0.1, by if work.model == "other" else None
        )
        results += [json.loads(done.result) for done in batcher.absorb(made, 1.1)]  # type: ignore[union-attr]
    assert sizes == {"m": 3, "other": 2}
    told = {(each["model"], each["provenance"]["backend"], each["embeddings"]["shape"][1]) for each in results}
    assert told == {("m", "fake", 4), ("other", "loaded", 6)}


def test_dimensions_are_those_of_the_model_that_is_asked_for() -> None:
    batcher = make_batcher()
    ended = take(batcher, [job(words(1), dimensions=5), job(words(1), dimensions=5, model="other")], 0.0)
    assert [str(error(each)) for each in ended] == ["dimensions: m makes vectors of 4, and 5 were asked for"]


def test_an_engine_that_loads_a_model_may_be_silent_for_longer() -> None:
    batcher = make_batcher()
    take(batcher, [job(words(1), model="other")], 0.0)
    work = batcher.next_work(1.0)
    assert work is not None
    usual = batcher.patience_s(1.0)
    assert batcher.absorb(Parked(work.id), 1.0) == []
    assert batcher.patience_s(1.0) == LOADING_PATIENCE_S > usual


@pytest.mark.system
def test_jobs_name_their_model_through_the_queue_and_the_record_lists_them(fleet: Fleet) -> None:
    names = ("bge", "electra")
    first, more = (str(DATA / "models" / name) for name in names)
    fleet.start("--embedding-backend", "cpu", "--embedding-model", first, "--more-embedding-models", more)
    producer = Producer(connection=fleet.connection)
    texts = recorded_texts()[:6]
    vectors = recorded("reference", "families")
    asked = [(name, producer.embed(texts, model=name)) for name in (*names, *names)]
    prints = set()
    for name, handle in asked:
        result = handle.result(timeout_s=60)
        assert np.abs(np.asarray(result.vectors) - vectors[f"{name}/plain"][:6]).max() < 1e-5
        assert (result.model, result.provenance.backend) == (name, "cpu")
        prints.add(result.provenance.fingerprint)
    assert len(prints) == 2
    with pytest.raises(JobFailedError, match="serves bge, electra and not 't5'"):
        producer.embed(texts, model="t5").result(timeout_s=60)
    (worker,) = read_fleet(fleet.connection).workers
    assert [model.name for model in worker.more_models] == ["electra"]
