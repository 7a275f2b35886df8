"""A worker's side of a token stream, for tests that play the worker."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from impetus_producer.contract import STREAM_KEY

from ..stock_worker import fail, finish, generation_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis import Redis


class Writer:
    """One run of a job, as a worker writes it: plain XADDs, by the words of the contract."""

    def __init__(self, connection: Redis, job_id: str, run: str = "run-1") -> None:
        self.connection = connection
        self.job_id = job_id
        self.key = f"{STREAM_KEY}{job_id}"
        self.run = run
        self.text = ""

    def start(self) -> Writer:
        Job.fetch(self.job_id, self.connection, serializer=JSONSerializer).set_status(JobStatus.STARTED)
        self._add(event="start", run=self.run)
        return self

    def write(self, *pieces: str) -> Writer:
        for piece in pieces:
            self.add(len(self.text), piece)
            self.text += piece
        return self

    def add(self, at: int, text: str) -> None:
        """One entry, wherever it may belong."""
        self._add(event="text", run=self.run, at=at, text=text)

    def finish(self, *, end: bool = True) -> None:
        if end:
            self._add(event="end", run=self.run, status="finished")
        finish(self.connection, self.job_id, generation_of(self.text))

    def fail(self, sentence: str) -> None:
        self._end("failed")
        fail(self.connection, self.job_id, sentence)

    def stop(self) -> None:
        """As stop-job ends a job."""
        self._end("stopped")
        fail(self.connection, self.job_id, "stopped")
        Job.fetch(self.job_id, self.connection, serializer=JSONSerializer).set_status(JobStatus.STOPPED)

    def _end(self, status: str) -> None:
        partial = generation_of(self.text) | {"finish_reason": "cancelled"}
        self._add(event="end", run=self.run, status=status, result=json.dumps(partial))

    def _add(self, **fields: Any) -> None:
        entry: Any = fields
        self.connection.xadd(self.key, entry)


class Reading:
    """Reads pieces in a thread of its own, so that a test can write between them."""

    def __init__(self, pieces: Callable[[], Iterable[str]]) -> None:
        self._got: list[str] = []
        self._more = threading.Condition()
        self._error: BaseException | None = None
        self._pieces = pieces
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def until(self, text: str) -> None:
        """Waits until exactly this was read."""
        with self._more:
            assert self._more.wait_for(lambda: "".join(self._got) == text, timeout=60), self._got

    def all(self) -> list[str]:
        """What was read until the end, or what ended it."""
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._got

    def _run(self) -> None:
        try:
            for piece in self._pieces():
                with self._more:
                    self._got.append(piece)
                    self._more.notify_all()
        except BaseException as error:  # noqa: BLE001 - `all` raises it in the test's thread
            self._error = error
