"""Several models take turns by the pool's rule, and no request is lost or answered twice, whatever comes when."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impetus_backends import pool as pool_module
from impetus_backends.errors import ModelError
from impetus_backends.models import ModelFiles
from impetus_backends.pool import ModelPool
from impetus_backends.protocol import (
    Answer,
    Deferred,
    EngineInfo,
    Event,
    Generated,
    GenerationWork,
    Parked,
    Rejected,
    Started,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROW_BYTES = 10
TURN_S = 30.0


class CountingEngine:
    """Runs a request for `max_tokens` steps; its rows take `ROW_BYTES` each of what the pool lets it have."""

    def __init__(self, name: str, share: int | None) -> None:
        self.info = EngineInfo("generation", "test", "cpu", name, (name,), f"print of {name}", "float32")
        self.share = share
        self.open = True
        self._waiting: deque[GenerationWork] = deque()
        self._running: dict[int, int] = {}
        self._events: list[Event] = []

    @property
    def used(self) -> int:
        return ROW_BYTES * len(self._running)

    def admit(self, work: GenerationWork) -> None:
        assert self.open
        self._waiting.append(work)

    def cancel(self, work_id: int) -> None:
        for work in [work for work in self._waiting if work.id == work_id]:
            self._waiting.remove(work)
            self._end(work_id, "cancelled")
        if self._running.pop(work_id, None) is not None:
            self._end(work_id, "cancelled")

    def pending(self) -> int:
        return len(self._waiting) + len(self._running) + len(self._events)

    def step(self) -> list[Event]:
        assert self.open
        while self._waiting:
            work = self._waiting.popleft()
            if self.share is None or self.used + ROW_BYTES <= self.share:
                assert work.max_tokens is not None
                self._running[work.id] = work.max_tokens
                self._events.append(Started(work.id))
            else:
                self._events.append(Deferred(work.id))
        for work_id in list(self._running):
            self._running[work_id] -= 1
            if self._running[work_id] == 0:
                del self._running[work_id]
                self._end(work_id, "length")
        events, self._events = self._events, []
        return events

    def resize(self, share: int | None) -> bool:
        assert self.open
        self.share = share
        return share is None or self.used <= share

    def close(self) -> None:
        assert not self._running
        self.open = False

    def _end(self, work_id: int, reason: str) -> None:
        self._events.append(
            Generated(work_id, (Answer("", reason),), 1, 1, 0.0, 0.0, self.info.model, f"print of {self.info.model}")
        )


class House:
    """A pool of models, by name and weight, with a clock of its own. Loading `broken` ones fails."""

    def __init__(self, folder: Path, models: dict[str, int], memory_bytes: int | None, broken: str = "") -> None:
        self.now = 0.0
        self.engines: dict[str, CountingEngine] = {}
        self.opened: list[str] = []
        self.weights = models
        self.memory_bytes = memory_bytes
        files = []
        for name, weight in models.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "model.safetensors").write_bytes(bytes(weight))
            files.append(ModelFiles(name, folder / name, (name, f"org/{name}", "the same")))

        def open_one(files: ModelFiles, memory_bytes: int | None) -> Any:
            if files.name == broken:
                raise ModelError("its weights are broken")
            share = None if memory_bytes is None else memory_bytes - models[files.name]
            self.engines[files.name] = CountingEngine(files.name, share)
            self.opened.append(files.name)
            return self.engines[files.name]

        self.pool = ModelPool(
            files,
            list(models.values()),
            open_one,
            memory_bytes=memory_bytes,
            max_concurrent=8,
            turn_s=TURN_S,
            clock=lambda: self.now,
        )

    @property
    def loaded(self) -> set[str]:
        return {name for name, engine in self.engines.items() if engine.open}

    def ask(self, work_id: int, model: str | None, steps: int = 1) -> None:
        self.pool.admit(GenerationWork(work_id, "x", None, steps, model=model))

    def step(self, seconds: float = 1.0) -> list[Any]:
        """One step, which takes so long; nobody ever has more memory than there is."""
        events = self.pool.step()
        self.now += seconds
        if self.memory_bytes is not None:
            weights = sum(self.weights[name] for name in self.loaded)
            assert weights + sum(self.engines[name].share or 0 for name in self.loaded) <= self.memory_bytes
            assert weights + sum(self.engines[name].used for name in self.loaded) <= self.memory_bytes
        return events

    def drain(self, most_steps: int = 1000) -> list[Any]:
        events: list[Any] = []
        for _ in range(most_steps):
            if not self.pool.pending():
                return events
            events += self.step()
        raise AssertionError("it never ends")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the models' files are. While it is in use nothing is collected: there is nothing, and it takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "give_back", lambda: None)
        yield tmp_path_factory.mktemp("house")


@pytest.fixture(scope="module")
def house(folder: Path) -> Callable[..., House]:
    return lambda models, memory_bytes=None, broken="": House(folder, models, memory_bytes, broken)


def endings(events: list[Any]) -> dict[int, Any]:
    ended: dict[int, Any] = {}
    for event in events:
        if isinstance(event, Generated | Rejected | Deferred):
            assert event.id not in ended
            ended[event.id] = event
    return ended


def test_without_a_limit_models_run_side_by_side(house: Any) -> None:
    inn = house({"a": 50, "b": 500})
    assert inn.loaded == {"a"}
    inn.ask(1, None, steps=5)
    inn.ask(2, "b", steps=5)
    assert inn.step()[0] == Parked(2)
    assert inn.step() == [Started(2)]
    assert inn.loaded == {"a", "b"}
    ended = endings(inn.drain())
    assert (ended[1].model, ended[2].model) == ("a", "b")
    assert inn.loaded == {"a", "b"}, "nobody needs their memory"


def test_news_for_one_model_does_not_stop_another(house: Any) -> None:
    inn = house({"a": 50, "b": 70}, 100)
    inn.ask(1, "a", steps=5)
    ended_at = None
    for step in range(5):
        inn.ask(10 + step, "b")
        if 1 in endings(inn.step()):
            ended_at = step
    assert ended_at == 4


def test_models_answer_to_their_names_and_the_first_to_those_they_share(house: Any) -> None:
    inn = house({"a": 50, "b": 50})
    assert inn.pool.info.model == "a"
    assert set(inn.pool.info.model_aliases) == {"a", "org/a", "b", "org/b", "the same"}
    assert inn.pool.info.max_concurrent == 8
    assert inn.pool.info.more_models == ("b",)
    names = [None, "a", "org/a", "the same", "b", "org/b", "nobody"]
    for number, name in enumerate(names):
        inn.ask(number, name)
    ended = endings(inn.drain())
    assert [ended[number].model for number in range(6)] == ["a", "a", "a", "a", "b", "b"]
    assert "no model 'nobody'" in ended[6].message


def test_an_idle_model_makes_way_at_once_and_the_least_recently_used_first(house: Any) -> None:
    inn = house({"a": 30, "b": 30, "c": 30, "d": 30}, 150)
    for number, name in enumerate("abcab"):
        inn.ask(number, name)
        inn.drain()
    assert inn.loaded == {"a", "b", "c"}
    inn.ask(9, "d")
    inn.drain(3)
    assert inn.loaded == {"a", "b", "d"}


def test_where_there_is_memory_for_one_models_take_turns(house: Any) -> None:
    inn = house({"a": 500, "b": 600}, 1000)
    numbers = iter(range(10**6))
    for _ in range(5):
        inn.ask(next(numbers), "a", steps=3)
        inn.step()
    inn.ask(1000, "b", steps=3)  # asked after five seconds, of the thirty that a has
    seen, parked = [], set()
    while inn.now < 100:
        inn.ask(next(numbers), "a", steps=3)
        for event in inn.step():
            if isinstance(event, Started):
                seen.append((inn.now, "b" if event.id == 1000 else "a"))
            if isinstance(event, Parked):
                parked.add(event.id)
            assert not isinstance(event, Rejected | Deferred)
    assert inn.opened == ["a", "b", "a"]
    begun = next(at for at, name in seen if name == "b")
    assert TURN_S < begun <= TURN_S + 3 + 3, "its turn, what ran in it, and the loading"
    last_of_a = max(at for at, name in seen if name == "a" and at < begun)
    assert TURN_S - 1 <= last_of_a <= TURN_S + 1, "it takes work till its turn is over, and none after that"
    assert 1000 in parked
    assert parked >= {int(at) for at in range(33, 36)}, "those of a that came after its turn were told to wait"
    again = min(at for at, name in seen if name == "a" and at > begun)
    assert again <= begun + 6, "b had one request: when it is idle, a is loaded at once"


def test_a_model_that_is_always_busy_makes_way_after_each_turn(house: Any) -> None:
    inn = house({"a": 50, "b": 60, "c": 55}, 100)
    number = 0
    ended: dict[int, Any] = {}
    while inn.now < 400:
        for name in "abc":
            if inn.now % 5 == 0:
                inn.ask(number, name, steps=4)
                number += 1
        ended |= endings(inn.step())
    assert inn.opened[:10] == list("abcabcabca")
    ended |= endings(inn.drain())
    assert ended.keys() == set(range(number))


def test_a_model_that_cannot_be_loaded_rejects_its_requests_alone(house: Any) -> None:
    inn = house({"a": 30, "b": 30}, 100, broken="b")
    inn.ask(1, "a", steps=6)
    inn.ask(2, "b")
    inn.ask(3, "b")
    inn.step()
    inn.ask(4, "a")
    ended = endings(inn.drain())
    assert {number for number, event in ended.items() if isinstance(event, Rejected)} == {2, 3}
    assert "b cannot be loaded: its weights are broken" in ended[2].message
    assert inn.engines["a"].share == 70, "what was set aside for it is given back"
    inn.ask(5, "b")
    inn.ask(6, "a")
    ended = endings(inn.drain())
    assert isinstance(ended[5], Rejected)
    assert isinstance(ended[6], Generated)


def test_a_model_that_no_memory_holds_is_refused_at_once_and_a_default_that_fails_too(house: Any) -> None:
    with pytest.raises(ModelError, match="b needs"):
        house({"a": 50, "b": 95}, 100)
    with pytest.raises(ModelError, match="broken"):
        house({"a": 50, "b": 50}, 200, broken="a")


def test_a_request_can_be_cancelled_in_every_state(house: Any) -> None:
    inn = house({"a": 50, "b": 60}, 100)
    inn.ask(1, "a", steps=50)
    inn.step()
    for number in (2, 3, 4):
        inn.ask(number, "b")
    inn.pool.cancel(2)  # waits for its model, and nobody has been told
    assert endings(inn.step()).keys() == {2}
    inn.pool.cancel(3)
    inn.pool.cancel(3)
    inn.pool.cancel(99)
    assert endings(inn.step()).keys() == {3}
    inn.now = 31
    inn.ask(5, "a")  # whose model makes way
    inn.pool.cancel(5)
    inn.pool.cancel(1)
    ended = endings(inn.drain())
    assert [ended[number].finish_reason for number in (5, 1, 4)] == ["cancelled", "cancelled", "length"]
    assert ended.keys() == {5, 1, 4}
    inn.pool.cancel(4)
    assert inn.pool.pending() == 0


def test_a_wish_that_is_cancelled_gives_back_what_was_set_aside_and_ends_the_making_way(house: Any) -> None:
    inn = house({"a": 30, "b": 30}, 100)
    for number in range(5):
        inn.ask(number, "a", steps=20)
    inn.step()
    inn.ask(9, "b")
    inn.step()
    inn.step()
    assert inn.loaded == {"a"}, "a uses 50, and half of what two models leave is 20"
    assert inn.engines["a"].share == 20
    inn.pool.cancel(9)
    assert inn.engines["a"].share == 70
    assert endings(inn.drain()).keys() == set(range(5)) | {9}
    assert inn.opened == ["a"]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([None, "a", "b", "c", "broken", "nobody"]), st.integers(1, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
        st.tuples(st.just("step"), st.integers(0, 20), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(actions=ACTIONS, memory_bytes=st.sampled_from([None, 100, 130, 180]))
def test_whatever_comes_when_every_request_ends_once(folder: Path, actions: Any, memory_bytes: int | None) -> None:
    inn = House(folder, {"a": 50, "b": 60, "c": 25, "broken": 40}, memory_bytes, broken="broken")
    asked: dict[int, str | None] = {}
    events: list[Any] = []
    for what, value, steps in actions:
        if what == "ask":
            inn.ask(len(asked), value, steps)
            asked[len(asked)] = value
        elif what == "cancel":
            inn.pool.cancel(value)
        else:
            events += inn.step(value)
    events += inn.drain()
    ended = endings(events)
    assert ended.keys() == asked.keys()
    for number, event in ended.items():
        if isinstance(event, Generated):
            assert event.model == (asked[number] or "a")
        else:
            assert isinstance(event, Deferred) or asked[number] in {"broken", "nobody"}
    assert not inn.pool._works
    inn.pool.close()
    assert inn.loaded == set()
