"""Jobs of all kinds and sizes, enqueued at a steady rate while `scripts/chaos` breaks what they run on."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from tests.worker.faults.account import HANG

from impetus_producer import GenerationHandle, ImpetusError, Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.proofs.faults.history import History

HANG_TIMEOUT_S = 2
DIMENSIONS = 16
_ONE_MORE_WITHIN_S = 45.0
"""A connection that was forgotten in silence is found by a deadline of ours, and that takes as long."""


def lasting_producer(url: str) -> Producer:
    """One whose jobs are kept for ever: an account is taken of all, and what has a time to live may be evicted."""
    return Producer(url, result_ttl_s=-1, failure_ttl_s=-1)


class Traffic:
    """Enqueues at a steady rate until it is told to stop, with one producer that is never made anew.

    `on_stream` is called with each generation whose text can be read while it is made, and its request.
    """

    def __init__(
        self,
        url: str,
        history: History,
        jobs_per_s: float,
        seed: int,
        on_stream: Callable[[GenerationHandle, dict[str, Any]], None],
    ) -> None:
        self._url = url
        self._history = history
        self._pause_s = 1 / jobs_per_s
        self._random = random.Random(seed)
        self._on_stream = on_stream
        self.refused: Counter[str] = Counter()
        self.special: list[str] = []
        """Texts that are to come in one of the next jobs each."""
        self._stopped = threading.Event()
        self._one_more = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Enqueues one more job, now that nothing is broken any more; returns whether that was possible."""
        self._stopped.set()
        self._thread.join(_ONE_MORE_WITHIN_S + 1)
        if self._error is not None:
            raise self._error
        return self._one_more

    def _run(self) -> None:
        try:
            producer: Producer | None = None
            give_up_at = float("inf")
            while not self._one_more and time.monotonic() < give_up_at:
                self._stopped.wait(self._pause_s)
                stopped = self._stopped.is_set()
                if stopped and give_up_at == float("inf"):
                    give_up_at = time.monotonic() + _ONE_MORE_WITHIN_S
                try:
                    producer = producer or lasting_producer(self._url)
                    self._enqueue(producer)
                    self._one_more = stopped
                except (ImpetusError, RedisError) as error:
                    # Whether it was accepted is not known; if it was, it is found in Redis.
                    self.refused[type(error).__name__] += 1
                    if stopped:
                        time.sleep(self._pause_s)
        except BaseException as error:  # noqa: BLE001 - raised again by stop()
            self._error = error

    def _enqueue(self, producer: Producer) -> None:
        draw = self._random.random()
        if self.special:
            text = self.special[-1]
            if text == HANG:
                hasty = Producer(
                    connection=producer.connection, timeout_s=HANG_TIMEOUT_S, result_ttl_s=-1, failure_ttl_s=-1
                )
                self._embed(hasty, [self._text(3), text], bulk=draw < 0.5)
            else:
                self._embed(producer, [*self._texts(), text], bulk=draw < 0.5)
            self.special.remove(text)  # not before: where it was refused, it comes again
        elif draw < 0.15:
            self._generate(producer, bulk=draw < 0.07, stream=draw < 0.11)
        elif draw > 0.85:
            self._rerank(producer, bulk=draw > 0.92)
        elif draw < 0.45:
            self._embed(producer, self._texts(), bulk=False)
        else:
            self._embed(producer, self._texts(), bulk=True)

    def _embed(self, producer: Producer, texts: list[str], *, bulk: bool) -> None:
        sent = self._history.attempt({"input": texts})
        self._history.acknowledge(sent, producer.embed(texts, dimensions=DIMENSIONS, bulk=bulk).job_id)

    def _generate(self, producer: Producer, *, bulk: bool, stream: bool) -> None:
        prompt, max_tokens = self._text(10), self._random.randint(1, 20)
        request = {"prompt": prompt, "max_tokens": max_tokens}
        sent = self._history.attempt(request)
        handle = producer.generate(prompt, max_tokens=max_tokens, bulk=bulk, stream=stream)
        self._history.acknowledge(sent, handle.job_id)
        if stream:
            self._on_stream(handle, request)

    def _rerank(self, producer: Producer, *, bulk: bool) -> None:
        query, documents = self._text(3), self._texts()
        sent = self._history.attempt({"query": query, "documents": documents})
        self._history.acknowledge(sent, producer.rerank(query, documents, bulk=bulk).job_id)

    def _texts(self) -> list[str]:
        words = self._random.choice((3, 10, 60))
        return [self._text(words) for _ in range(self._random.choice((1, 1, 1, 4, 16, 64)))]

    def _text(self, words: int) -> str:
        return " ".join(f"{self._random.getrandbits(20):x}" for _ in range(words))
