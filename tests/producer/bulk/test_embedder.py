"""Batches for Ray Data and Hugging Face's datasets, by the real libraries."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_producer import ImpetusEmbedder, InvalidRequestError, JobFailedError, Producer, embed_batch

from ..stock_worker import RefusedError, StockWorker, embedding_of, honest_work, vector_of, working

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [f"text {number}" for number in range(150)]


def test_a_batch_is_a_matrix_and_asked_for_twice_it_is_computed_once(producer: Producer, redis_url: str) -> None:
    computed: Counter[str] = Counter()

    def note(function: str, request: dict[str, Any]) -> Any:
        computed.update(request["input"])
        return embedding_of(request["input"])

    with working(redis_url, note):
        first, second = embed_batch(producer, TEXTS), embed_batch(Producer(redis_url), TEXTS)
        other = embed_batch(producer, TEXTS[:10], input_type="query")
        for _ in range(2):
            embed_batch(producer, TEXTS[:1], prompt_name="query")
            embed_batch(producer, TEXTS[:1], prompt="query")
            embed_batch(producer, TEXTS[:1], prompt="")
    np.testing.assert_array_equal(first, [vector_of(text) for text in TEXTS])
    np.testing.assert_array_equal(first, second)
    assert len(other) == 10
    assert computed == Counter(TEXTS) + Counter(TEXTS[:10]) + Counter(TEXTS[:1] * 3)


def test_what_failed_is_tried_again_when_it_is_asked_for_again(producer: Producer, redis_url: str) -> None:
    fails = True

    def once(function: str, request: dict[str, Any]) -> Any:
        nonlocal fails
        if fails:
            fails = False
            raise RefusedError("the device is on fire")
        return honest_work(function, request)

    with working(redis_url, once):
        with pytest.raises(JobFailedError, match="on fire"):
            embed_batch(producer, ["a"])
        assert len(embed_batch(producer, ["a"])) == 1


def test_a_batch_whose_results_were_deleted_is_computed_anew(producer: Producer, worker: StockWorker) -> None:
    embed_batch(producer, ["a", "b"])
    (key,) = producer.connection.keys("rq:results:*")
    producer.connection.delete(key)
    np.testing.assert_array_equal(embed_batch(producer, ["a", "b"]), [vector_of("a"), vector_of("b")])


def test_what_is_no_text_is_named_by_its_place(producer: Producer) -> None:
    for texts, sentence in ((["a", None], "item 1 is a NoneType"), ("a", "not a str"), (["\ud800"], "item 0: ")):
        with pytest.raises(InvalidRequestError, match=sentence):
            embed_batch(producer, texts)  # type: ignore[arg-type]
    assert len(embed_batch(producer, [])) == 0
    assert producer.connection.keys() == []


def test_batches_of_one_text_do_not_pass_for_those_of_two(producer: Producer, worker: StockWorker) -> None:
    assert len(embed_batch(producer, ["a\0b"])) == 1
    assert len(embed_batch(producer, ["a", "b"])) == 2


@pytest.mark.system
def test_datasets_map(redis_url: str, worker: StockWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets

    embedder = pickle.loads(pickle.dumps(ImpetusEmbedder(redis_url, column="body", output="vector")))
    dataset = datasets.Dataset.from_dict({"body": TEXTS, "n": list(range(len(TEXTS)))})
    embedded = dataset.map(embedder, batched=True, batch_size=64)
    assert embedded.column_names == ["body", "n", "vector"]
    np.testing.assert_array_equal(
        np.array(embedded["vector"], np.float32), np.array([vector_of(text) for text in TEXTS], np.float32)
    )


@pytest.mark.system
@pytest.mark.skipif("IMPETUS_TEST_RAY" not in os.environ, reason="a cluster of processes; install ray[data] and set it")
@pytest.mark.filterwarnings("ignore")
def test_ray_data_map_batches(redis_url: str, worker: StockWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # Its sockets' names have to be short.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80_000_000,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            rows = ray.data.from_items([{"text": text} for text in TEXTS])
            embedded = rows.map_batches(
                ImpetusEmbedder, fn_constructor_kwargs={"redis_url": redis_url}, concurrency=1, batch_size=50
            ).take_all()
        finally:
            ray.shutdown()
    assert {row["text"]: row["embedding"].tolist() for row in embedded} == {text: vector_of(text) for text in TEXTS}
