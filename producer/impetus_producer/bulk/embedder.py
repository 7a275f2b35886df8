"""Batches of texts for engines that have their own checkpoints and retries: Ray Data, datasets, Dask, Spark.

from impetus_producer import ImpetusEmbedder

ds.map_batches(ImpetusEmbedder, fn_constructor_kwargs={"redis_url": url}, concurrency=4)   # Ray Data
dataset.map(ImpetusEmbedder(redis_url=url), batched=True, batch_size=256)                  # Hugging Face datasets
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .. import contract
from ..enqueueing.requests import embedding_payload
from ..enqueueing.texts import CHARACTERS_PER_JOB, check_many, checked, parts
from ..errors import JobCancelledError, JobFailedError, JobNotFoundError
from ..handles import EmbeddingHandle
from ..spread import open_producer
from .kept.stores import open_store
from .recall import Recall
from .works import prompting, text_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from ..client import Producer
    from ..contract import EmbeddingResult
    from ..enqueueing.requests import InputType
    from ..spread import SpreadProducer
    from .kept.store import AnswerStore
    from .recall import Recalled

_TEXTS_PER_JOB = 64
_MOST_LOSSES = 5
_RECALLS: WeakKeyDictionary[AnswerStore, Recall] = WeakKeyDictionary()


def embed_batch(
    producer: Producer | SpreadProducer,
    texts: Sequence[str],
    *,
    model: str | None = None,
    dimensions: int | None = None,
    input_type: InputType | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    truncate: bool = True,
    timeout_s: float | None = None,
    store: AnswerStore | None = None,
) -> np.ndarray | list[list[float]]:
    """The texts' vectors, (texts, dimensions), by jobs of the bulk queue.

    A batch that is asked for again, by whom ever, is computed once for as long as its results stay in Redis
    (`Producer(result_ttl_s=...)`, an hour): its jobs' ids follow from its texts and options.
    What failed is forgotten, so that asking again tries again. With a `store` no text is computed that is in it, by
    any run or service, as far as the model is known that would answer (`recall.py`). Safe in several threads.

    Raises `InvalidRequestError` naming the text at fault, `JobFailedError`, `ResultTimeoutError` when one of the jobs
    takes longer than `timeout_s`, `ServerError` when the producer's patience ends.
    """
    check_many(texts, _TEXTS_PER_JOB, 1)
    recall = None if store is None else _RECALLS.setdefault(store, Recall(store))
    results: list[EmbeddingResult] = []
    waiting = []
    for part in parts(checked(texts), _TEXTS_PER_JOB, CHARACTERS_PER_JOB, len):
        payload = embedding_payload(
            part, model, dimensions, input_type, truncate, "raw", prompt_name=prompt_name, prompt=prompt
        )
        recalled = None if recall is None else recall.look(payload)
        waiting.append(_Asked(producer, payload, recall, recalled))
    results = [asked.result(timeout_s) for asked in waiting]
    try:
        import numpy as np
    except ImportError:
        return list(chain.from_iterable(result.vectors for result in results))
    return np.concatenate([result.vectors for result in results]) if results else np.empty((0, 0), np.float32)


class _Asked:
    """Some texts, of which those that nobody has are on their way."""

    def __init__(
        self,
        producer: Producer | SpreadProducer,
        payload: dict[str, Any],
        recall: Recall | None,
        recalled: Recalled | None,
    ) -> None:
        self._producer, self._payload = producer, payload
        self._recall, self._recalled = recall, recalled
        self._job: tuple[str, dict[str, Any]] | None = None
        if recalled is None:
            self._send(payload["input"])
        elif recalled.missing:
            self._send(recalled.missing)

    def _send(self, texts: Sequence[str]) -> None:
        payload = {**self._payload, "input": list(texts)}
        options = [payload.get("model"), payload.get("dimensions"), prompting(payload), payload.get("truncate")]
        job_id = f"batch-{text_key(chr(0).join(texts), [len(text) for text in texts], *options).hex()}"
        self._job = job_id, payload
        self._enqueue()

    def _enqueue(self) -> None:
        assert self._job is not None
        job_id, payload = self._job
        self._producer.of(job_id).enqueue(contract.EMBEDDING_BULK_QUEUE, contract.EMBED_FUNCTION, {job_id: payload})

    def result(self, timeout_s: float | None) -> EmbeddingResult:
        result = None if self._job is None else self._computed(timeout_s)
        if self._recall is None or self._recalled is None:
            assert result is not None
            return result
        if result is not None:
            if not self._recalled.fits(result):
                self._recalled = replace(self._recalled, found={})
                self._send(self._recalled.missing)
                result = self._computed(timeout_s)
            self._recall.keep(self._payload, self._recalled, result)
        return self._recalled.whole(result)

    def _computed(self, timeout_s: float | None) -> EmbeddingResult:
        assert self._job is not None
        producer = self._producer.of(self._job[0])
        handle = EmbeddingHandle(self._job[0], producer.connection, producer.patience)
        for losses_left in range(_MOST_LOSSES, -1, -1):
            try:
                return handle.result(timeout_s)
            except (JobFailedError, JobCancelledError):
                handle.delete()
                raise
            except JobNotFoundError:
                # The server lost it, or somebody deleted it.
                if not losses_left:
                    raise
                handle.delete()
                self._enqueue()
        raise AssertionError("unreachable")


class ImpetusEmbedder:
    """Adds vectors to batches of columns: `embedder({"text": [...]})` is the batch with `embedding` beside `text`.

    `redis_url`: the server, or several. `column`, `output`: their names. `store`: the file or URL of a store.
    `options`: those of `embed_batch`. Can be pickled; connects when it is first used, in whatever process that is.
    """

    def __init__(
        self,
        redis_url: str | Sequence[str] | None = None,
        *,
        column: str = "text",
        output: str = "embedding",
        store: str | None = None,
        **options: Any,
    ) -> None:
        self._redis_url = redis_url
        self._store_name = store
        self._column, self._output = column, output
        self._options = options
        self._producer: Producer | SpreadProducer | None = None
        self._store: AnswerStore | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        self._producer = self._producer or open_producer(self._redis_url)
        if self._store_name is not None and self._store is None:
            self._store = open_store(self._store_name)
        texts = [each.item() if hasattr(each, "item") else each for each in batch[self._column]]
        return {**batch, self._output: embed_batch(self._producer, texts, store=self._store, **self._options)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_producer": None, "_store": None}
