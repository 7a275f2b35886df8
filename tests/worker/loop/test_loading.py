"""Engines that load for long, or hang while they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from impetus_worker import inbox
from impetus_worker.awake import AwakeClock
from impetus_worker.host.engine_lives import LOADING_PATIENCE_S, MOST_WHILE_LOADING, SLOW_LOADING_S
from impetus_worker.leases.outcomes import Returned
from impetus_worker.loop import engine_side
from impetus_worker.loop.interruptions import Interruptions
from impetus_worker.loop.stopping import Stopping
from impetus_worker.observing.observer import Observer
from impetus_worker.settings import WorkerSettings

from ..batches.batching import job, make_batcher, take, words

if TYPE_CHECKING:
    import pytest

    from impetus_backends.engine_config import EngineConfig
    from impetus_worker.leases.claims import ClaimedJob
    from impetus_worker.leases.outcomes import News


class Loading:
    """An engine's process that is given what it is told, and says nothing unless the test does."""

    def __init__(self, *_: object) -> None:
        self.life = 0
        self.pid = 7
        self.info = None
        self.silence_s = 0.0
        self.started: list[EngineConfig] = []

    def start(self, config: EngineConfig) -> None:
        self.life += 1
        self.silence_s = 0.0
        self.started.append(config)

    def silent_s(self) -> float:
        return self.silence_s

    def heard(self) -> None:
        self.silence_s = 0.0

    def cancel(self, work_id: int) -> None:
        pass


class Side:
    """The engine's side of a loop that has not turned yet. `holding`: what it has claimed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *holding: ClaimedJob) -> None:
        monkeypatch.setattr(engine_side, "EngineProcess", Loading)
        self.news: list[News] = []
        jobs: Any = SimpleNamespace(note=self.news.extend, open={each.id: each for each in holding})
        settings = WorkerSettings((), "embedding", "w")
        clock: Any = AwakeClock(lambda: 0.0)
        self.engine = engine_side.EngineSide(settings, jobs, Observer(), Stopping(clock), clock, print)
        self.process: Any = self.engine._process
        if holding:
            batcher: Any = make_batcher()
            take(batcher, list(holding))
            interruptions = Interruptions(self.process, batcher, jobs)
            monkeypatch.setattr(self.engine, "_opened", (batcher, interruptions, None))
        self.engine.start()

    def loads(self, backend: str) -> None:
        self.engine.hear(inbox.EngineTries(self.process.life, backend))

    def silent_for(self, seconds: float) -> None:
        self.process.silence_s = seconds
        self.engine.look_after_loading()


def test_a_backend_that_hangs_while_it_loads_is_ended_and_passed_over_in_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side(monkeypatch)
    for _ in range(MOST_WHILE_LOADING):
        side.loads("coreml")
        side.silent_for(LOADING_PATIENCE_S + 1)
    assert len(side.process.started) == 1 + MOST_WHILE_LOADING
    (excluded,) = side.process.started[-1].excluded
    assert excluded.backend == "coreml"
    assert "was silent for 1801 s while it was loading" in excluded.reason
    assert "was silent for 1801 s while it loaded coreml" in caplog.text


def test_each_backend_has_the_whole_time_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(monkeypatch)
    for backend in ("coreml", "mlx", "cpu"):
        side.loads(backend)
        side.silent_for(side.process.silence_s + LOADING_PATIENCE_S - 1)
    assert len(side.process.started) == 1


def test_fetching_a_model_takes_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(monkeypatch)
    side.loads("coreml")
    side.loads("")
    side.silent_for(100 * LOADING_PATIENCE_S)
    assert len(side.process.started) == 1


def test_one_that_serves_is_not_taken_for_one_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(monkeypatch)
    side.loads("coreml")
    side.process.info = object()
    side.silent_for(100 * LOADING_PATIENCE_S)
    assert len(side.process.started) == 1


def test_of_each_that_loads_for_long_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    side = Side(monkeypatch)
    for backend in ("coreml", "mlx"):
        side.loads(backend)
        for after in (1, 2, 3):
            side.silent_for(SLOW_LOADING_S + after)
    said = [f"the backend {backend} has been loading for 61 s" for backend in ("coreml", "mlx")]
    assert [each for each in caplog.messages if "has been loading" in each] == said


def test_jobs_do_not_wait_here_for_one_that_loads_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = job(words(20))
    side = Side(monkeypatch, waiting)
    side.loads("coreml")
    side.silent_for(SLOW_LOADING_S - 1)
    assert side.news == []
    side.silent_for(SLOW_LOADING_S + 1)
    assert side.news == [Returned(waiting)]
