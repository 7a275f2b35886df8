"""Those who wait for answers while things break: how long it took them, and whether what they read was right."""

from __future__ import annotations

import queue
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from scripts.proofs.traffic import lasting_producer
from tests.worker.faults.expected import text_of

from impetus_producer import ImpetusError, JobCancelledError, JobFailedError, JobHandle, ResultTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scripts.proofs.faults.history import History

    from impetus_producer import GenerationHandle, Producer

_PAUSE_S = 0.25
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Wait:
    """From just before an interactive job was enqueued until its result was read, on the monotonic clock."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since

    def is_during(self, spells: Iterable[tuple[float, float]]) -> bool:
        return any(begin <= self.until and self.since <= end for begin, end in spells)


class Probe:
    """Somebody who wants one interactive answer after the other. `url`: an address that faults spare."""

    def __init__(self, url: str, history: History, kind: str, seed: int) -> None:
        self._url = url
        self._history = history
        self._kind = kind
        self._random = random.Random(f"{kind} {seed}")
        self.waits: list[Wait] = []
        self._stopped = threading.Event()
        self._gave_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"probe-{kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks for nothing more; what was asked for may still come."""
        self._stopped.set()

    def end(self) -> None:
        self._stopped.set()
        self._gave_up.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopped.wait(_PAUSE_S):
            with suppress(ImpetusError, RedisError):
                producer = lasting_producer(self._url)
                try:
                    while not self._stopped.wait(_PAUSE_S):
                        self._ask(producer)
                finally:
                    producer.connection.close()

    def _ask(self, producer: Producer) -> None:
        text = " ".join(f"{self._random.getrandbits(20):x}" for _ in range(5))
        since = time.monotonic()
        handle: JobHandle[Any]
        if self._kind == "embedding":
            sent = self._history.attempt({"input": text})
            handle = producer.embed(text)
        else:
            sent = self._history.attempt({"prompt": text, "max_tokens": 5})
            handle = producer.generate(text, max_tokens=5)
        self._history.acknowledge(sent, handle.job_id)
        ended = False
        while not ended and not self._gave_up.is_set():
            try:
                handle.result(timeout_s=_LOOK_AGAIN_S)
                ended = True
            except ResultTimeoutError:
                continue
            except (JobFailedError, JobCancelledError):
                ended = True  # the account says of it what is to be said
            except (ImpetusError, RedisError):
                self._gave_up.wait(0.1)
        self.waits.append(Wait(since, time.monotonic()))


class StreamReader:
    """Reads one stream at a time from its beginning to its end, and says which were not the text of their job."""

    def __init__(self) -> None:
        self._next: queue.Queue[tuple[GenerationHandle, dict[str, Any]] | None] = queue.Queue(1)
        self.read = 0
        self.wrong: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream-reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, handle: GenerationHandle, request: dict[str, Any]) -> None:
        """Unless it is busy."""
        with suppress(queue.Full):
            self._next.put_nowait((handle, request))

    def end(self) -> None:
        self._ended.set()
        with suppress(queue.Full):
            self._next.put_nowait(None)
        self._thread.join(10)

    def _run(self) -> None:
        while (taken := self._next.get()) is not None and not self._ended.is_set():
            handle, request = taken
            while not self._ended.is_set():
                try:
                    text = "".join(handle.stream(timeout_s=60))
                except (JobFailedError, JobCancelledError):
                    break
                except (ImpetusError, RedisError):
                    self._ended.wait(0.1)  # begun anew, or out of reach: what was read is void
                    continue
                self.read += 1
                if text != text_of(request):
                    self.wrong.append(f"{handle.job_id}: {text[:60]!r}")
                break
