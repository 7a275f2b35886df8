"""Batches of texts for engines that have their own checkpoints and retries: Ray Data, datasets, Dask, Spark.

from impetus_producer import ImpetusEmbedder

ds.map_batches(ImpetusEmbedder, fn_constructor_kwargs={"redis_url": url}, concurrency=4)   # Ray Data
dataset.map(ImpetusEmbedder(redis_url=url), batched=True, batch_size=256)                  # Hugging Face datasets
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from .. import contract
from ..client import Producer
from ..errors import JobCancelledError, JobFailedError, JobNotFoundError
from ..handles import EmbeddingHandle
from ..requests import embedding_payload
from ..texts import CHARACTERS_PER_JOB, check_many, checked, parts
from .works import text_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from ..requests import InputType

_TEXTS_PER_JOB = 64
_MOST_LOSSES = 5


def embed_batch(
    producer: Producer,
    texts: Sequence[str],
    *,
    model: str | None = None,
    dimensions: int | None = None,
    input_type: InputType | None = None,
    truncate: bool = True,
    timeout_s: float | None = None,
) -> np.ndarray | list[list[float]]:
    """The texts' vectors, (texts, dimensions), by jobs of the bulk queue.

    A batch that is asked for again, by whom ever, is computed once for as long as its results stay in Redis
    (`Producer(result_ttl_s=...)`, an hour): its jobs' ids follow from its texts and options.
    What failed is forgotten, so that asking again tries again. Safe in several threads.

    Raises `InvalidRequestError` naming the text at fault, `JobFailedError`, `ResultTimeoutError` when one of the jobs
    takes longer than `timeout_s`, `ServerError` when the producer's patience ends.
    """
    check_many(texts, _TEXTS_PER_JOB, 1)
    payloads = {}
    for part in parts(checked(texts), _TEXTS_PER_JOB, CHARACTERS_PER_JOB, len):
        payload = embedding_payload(part, model, dimensions, input_type, truncate, "raw")
        name = text_key("\0".join(part), [len(text) for text in part], model, dimensions, input_type, truncate)
        payloads[f"batch-{name.hex()}"] = payload
    for job_id, payload in payloads.items():
        producer.enqueue(contract.EMBEDDING_BULK_QUEUE, contract.EMBED_FUNCTION, {job_id: payload})
    made = [_vectors(producer, job_id, payload, timeout_s) for job_id, payload in payloads.items()]
    try:
        import numpy as np
    except ImportError:
        return list(chain.from_iterable(made))
    return np.concatenate(made) if made else np.empty((0, 0), np.float32)


def _vectors(producer: Producer, job_id: str, payload: Mapping[str, Any], timeout_s: float | None) -> Any:
    handle = EmbeddingHandle(job_id, producer.connection, producer.patience)
    for losses_left in range(_MOST_LOSSES, -1, -1):
        try:
            return handle.result(timeout_s).vectors
        except (JobFailedError, JobCancelledError):
            handle.delete()
            raise
        except JobNotFoundError:
            # The server lost it, or somebody deleted it.
            if not losses_left:
                raise
            handle.delete()
            producer.enqueue(contract.EMBEDDING_BULK_QUEUE, contract.EMBED_FUNCTION, {job_id: payload})
    raise AssertionError("unreachable")


class ImpetusEmbedder:
    """Adds vectors to batches of columns: `embedder({"text": [...]})` is the batch with `embedding` beside `text`.

    `column`, `output`: their names. `options`: those of `embed_batch`. Can be pickled; connects when it is first used,
    in whatever process that is.
    """

    def __init__(
        self, redis_url: str | None = None, *, column: str = "text", output: str = "embedding", **options: Any
    ) -> None:
        self._redis_url = redis_url
        self._column, self._output = column, output
        self._options = options
        self._producer: Producer | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        self._producer = self._producer or Producer(self._redis_url)
        texts = [each.item() if hasattr(each, "item") else each for each in batch[self._column]]
        return {**batch, self._output: embed_batch(self._producer, texts, **self._options)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_producer": None}
