"""Jobs that end before their time, and engines that are taken for hung."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from impetus_worker.errors import JobTimeoutError
from impetus_worker.leases.outcomes import Failed, Stopped
from impetus_worker.loop.interruptions import Interruptions

from ..batches.batching import given, job, make_batcher, run, take, words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from impetus_worker.batches.embedding import EmbeddingBatcher
    from impetus_worker.leases.claims import ClaimedJob
    from impetus_worker.leases.outcomes import News


class Told:
    """An engine and a ledger that remember what they were told."""

    def __init__(self, batcher: EmbeddingBatcher, *jobs: ClaimedJob) -> None:
        self.silence_s = 0.0
        self.cancelled: list[int] = []
        self.news: list[News] = []
        self.open = {each.id: each for each in jobs}
        engine: Any = SimpleNamespace(silent_s=lambda: self.silence_s, cancel=self.cancelled.append)
        ledger: Any = SimpleNamespace(note=self._note, open=self.open)
        self.interruptions = Interruptions(engine, batcher, ledger)

    def _note(self, news: Iterable[News]) -> None:
        self.news += news


def test_a_job_that_has_had_its_time_of_the_engine_fails_once() -> None:
    batcher, late = make_batcher(), job(words(20), timeout_s=3)
    told = Told(batcher, late)
    take(batcher, [late])
    told.interruptions.enforce_timeouts(500.0)
    assert told.news == []
    given(batcher, 1000.0)
    for now in (1001.0, 1003.5, 1004.0):
        told.interruptions.enforce_timeouts(now)
    (outcome,) = told.news
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, JobTimeoutError)
    assert "its timeout of 3 s" in str(outcome.error)


def test_an_engine_that_holds_nothing_is_never_hung() -> None:
    batcher = make_batcher()
    told = Told(batcher)
    told.silence_s = 1e9
    assert not told.interruptions.engine_is_hung(0.0)


def test_an_engine_is_hung_when_it_is_silent_for_longer_than_its_work_explains() -> None:
    batcher = make_batcher()
    told = Told(batcher)
    take(batcher, [job(words(20)), job(words(20))])
    first = given(batcher)
    batcher.absorb(run(first, 20.0), 1000.0)
    given(batcher)
    told.silence_s = 199.0
    assert not told.interruptions.engine_is_hung(0.0)
    told.silence_s = 201.0
    assert told.interruptions.engine_is_hung(0.0)


def test_cancelling_jobs_asks_nothing_of_an_engine_whose_batch_others_want() -> None:
    batcher, cancelled, neighbour = make_batcher(), job(words(10)), job(words(10))
    told = Told(batcher, cancelled, neighbour)
    take(batcher, [cancelled, neighbour])
    given(batcher)
    told.interruptions.interrupt(Stopped(cancelled))
    told.silence_s = 60.0
    assert told.news == [Stopped(cancelled)]
    assert told.cancelled == []
    assert not told.interruptions.engine_is_hung(0.0)


def test_an_engine_that_hangs_in_a_job_is_found_five_seconds_after_the_jobs_timeout() -> None:
    batcher, stuck = make_batcher(), job(words(10), timeout_s=1)
    told = Told(batcher, stuck)
    take(batcher, [stuck, job(words(10))])
    given(batcher, 0.0)
    told.interruptions.enforce_timeouts(1.5)
    told.silence_s = 4.9
    assert not told.interruptions.engine_is_hung(4.9)
    told.silence_s = 5.1
    assert told.interruptions.engine_is_hung(5.1)


def test_only_open_jobs_can_be_abandoned() -> None:
    batcher, abandoned = make_batcher(), job(words(10))
    told = Told(batcher, abandoned)
    take(batcher, [abandoned])
    told.interruptions.abandon([abandoned.id, "another's"])
    (outcome,) = told.news
    assert isinstance(outcome, Stopped)
    assert outcome.job is abandoned
    assert batcher.next_work(1000.0) is None
