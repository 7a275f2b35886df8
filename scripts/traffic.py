"""Jobs of all kinds and sizes, enqueued at a steady rate while `scripts/chaos` breaks what they run on."""

from __future__ import annotations

import random
import threading
from collections import Counter

from redis.exceptions import RedisError
from tests.worker.account import HANG

from impetus_producer import ImpetusError, Producer

HANG_TIMEOUT_S = 2


class Traffic:
    """Enqueues at a steady rate until it is told to stop, and remembers the ids that were confirmed."""

    def __init__(self, url: str, jobs_per_s: float, seed: int) -> None:
        self._url = url
        self._pause_s = 1 / jobs_per_s
        self._random = random.Random(seed)
        self.acknowledged: list[str] = []
        self.refused: Counter[str] = Counter()
        self.special: list[str] = []
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(60)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            producer: Producer | None = None
            while not self._stopped.wait(self._pause_s):
                try:
                    producer = producer or Producer(self._url, result_ttl_s=-1)
                    self.acknowledged.append(self._enqueue(producer))
                except (ImpetusError, RedisError) as error:
                    # Whether it was accepted is not known; if it was, it is found in Redis.
                    self.refused[type(error).__name__] += 1
        except BaseException as error:  # noqa: BLE001 - raised again by stop()
            self._error = error

    def _enqueue(self, producer: Producer) -> str:
        draw = self._random.random()
        if self.special:
            text = self.special.pop()
            if text == HANG:
                hasty = Producer(connection=producer.connection, timeout_s=HANG_TIMEOUT_S, result_ttl_s=-1)
                return hasty.embed(["beside it", text], dimensions=16, bulk=draw < 0.5).job_id
            return producer.embed([*self._texts(), text], dimensions=16, bulk=draw < 0.5).job_id
        if draw < 0.15:
            tokens, bulk, stream = self._random.randint(1, 20), draw < 0.07, draw < 0.11
            return producer.generate(self._texts()[0], max_tokens=tokens, bulk=bulk, stream=stream).job_id
        if draw < 0.45:
            return producer.embed(self._texts()[0], dimensions=16).job_id
        return producer.embed(self._texts(), dimensions=16, bulk=True).job_id

    def _texts(self) -> list[str]:
        words = self._random.choice((3, 10, 60))
        count = self._random.choice((1, 1, 1, 4, 16, 64))
        return [" ".join(f"{self._random.getrandbits(20):x}" for _ in range(words)) for _ in range(count)]
