"""Several models in one engine: each loaded when a request asks for it, and unloaded when another needs its memory.

The rule. Loaded models run side by side, each its own batch, one step each in turn. A model that is wanted and not
loaded is loaded as soon as there is memory for it; for that, idle models are unloaded, the least recently used one
first. Where all that are loaded are busy, the one loaded longest takes nothing new once it has had its turn of `turn_s`
since it was loaded; when what it runs is done it is unloaded, and its own requests wait for their next turn. So a
request waits for its model no longer than a turn, what runs in it, and the loading, for each model wanted before it.

Memory: of the limit, each loaded model gets its weights and an equal part of what all weights leave. There is memory
for one more if that leaves each at least `least_share` of the limit, and if none uses more than its new part now. A
request that needs more than its model's part sees to it that idle models are unloaded.

Those are reckonings. What the process has is watched besides: when that is near the limit, of several loaded models the
least recently used one leaves, as soon as it is idle; it takes nothing new until then.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from .errors import BackendError, ModelError
from .generation.memory import give_back
from .machine.footprint import MemoryWatch
from .protocol import (
    Answer,
    Deferred,
    Embedded,
    Engine,
    EngineInfo,
    Event,
    Generated,
    GenerationWork,
    Parked,
    Rejected,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .models import ModelFiles

TURN_S = 30.0
LEAST_SHARE = 1 / 8
_log = logging.getLogger(__name__)


class PooledEngine(Engine, Protocol):
    """The engine of one of the models."""

    def resize(self, memory_bytes: int | None) -> bool:
        """What it may take from now on, its weights aside (None: any number); whether it takes no more now."""
        ...


@dataclass(slots=True, eq=False)
class _Model:
    files: ModelFiles
    weights_bytes: int
    engine: PooledEngine | None = None
    loaded_at: float = 0.0
    used_at: float = 0.0
    waiting: deque[tuple[float, Work]] = field(default_factory=deque)
    """Requests that its engine has not been given, the oldest first, and when each came."""

    @property
    def wanted_at(self) -> float:
        """When the oldest of those that wait came."""
        return self.waiting[0][0]

    @property
    def busy(self) -> bool:
        return self.engine is not None and self.engine.pending() > 0


class ModelPool:
    """Implements `protocol.Engine` for the work of any of `models`; the first is the default, and loaded first.

    `weights_bytes`: what each takes once it is loaded. `open_one`: makes the engine of a model that may take so many
    bytes when it is the only one, weights included (None: any number). `max_concurrent`: how many requests it is to be
    given at a time; none: as many as the default model's engine runs together. `others`: what is known of all but the
    first before they are loaded; their names, if nothing is given. `watch`: of the process's memory, if it is watched.
    Raises what `open_one` raises for the default model, and `ModelError` for a model that could never be loaded.
    """

    def __init__(
        self,
        models: Sequence[ModelFiles],
        weights_bytes: Sequence[int],
        open_one: Callable[[ModelFiles, int | None], PooledEngine],
        *,
        memory_bytes: int | None,
        max_concurrent: int | None,
        others: Sequence[EngineInfo] = (),
        least_share: float = LEAST_SHARE,
        turn_s: float = TURN_S,
        watch: MemoryWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_one = open_one
        self._memory_bytes = memory_bytes
        self._turn_s = turn_s
        self._least_share = least_share
        self._clock = clock
        self._models = [_Model(files, weights) for files, weights in zip(models, weights_bytes, strict=True)]
        self._by_name = {alias: model for model in reversed(self._models) for alias in model.files.aliases}
        self._works: dict[int, _Model] = {}
        self._events: list[Event] = []
        self._watch = watch or MemoryWatch(None)
        self._leaving: _Model | None = None
        """The one that is unloaded as soon as it is idle, because the process has too much memory."""
        self._told: _Model | None = None
        """The model that is next: before it is loaded, which takes a while, one step has told who waits for it."""
        for model in self._models:
            if not self._fits([model]):
                raise ModelError(
                    f"{model.files.name} needs {model.weights_bytes / 2**30:.2f} GiB for its weights alone, of the "
                    f"{(memory_bytes or 0) / 2**30:.2f} GiB allowed"
                )
        default = self._models[0]
        self._load(default)
        assert default.engine is not None
        self._info = replace(
            default.engine.info,
            model_aliases=tuple(self._by_name),
            others=tuple(others) or tuple(_known(default.engine.info, model.files) for model in self._models[1:]),
            max_concurrent=max_concurrent or default.engine.info.max_concurrent,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def admit(self, work: Work) -> None:
        """Takes a request in. What is wrong with it comes from `step`."""
        model = self._models[0] if work.model is None else self._by_name.get(work.model)
        if model is None:
            self._events.append(Rejected(work.id, f"there is no model {work.model!r:.200} here"))
            return
        model.waiting.append((self._clock(), work))
        self._works[work.id] = model
        if model.engine is None or self._makes_way(model):
            self._events.append(Parked(work.id))

    def cancel(self, work_id: int) -> None:
        """Ends a request wherever it is. An unknown id is no error."""
        if (model := self._works.get(work_id)) is None:
            return
        if found := next((each for each in model.waiting if each[1].id == work_id), None):
            model.waiting.remove(found)
            del self._works[work_id]
            if isinstance(found[1], GenerationWork):
                cancelled = (Answer("", "cancelled"),)
                self._events.append(Generated(work_id, cancelled, 0, 0, 0.0, 0.0, model.files.name, ""))
            self._reshare()  # room may have been made for what is no longer wanted
        elif model.engine is not None:
            model.engine.cancel(work_id)

    def pending(self) -> int:
        """Requests not done, and events that no `step` has handed over yet."""
        waiting = sum(len(model.waiting) for model in self._models)
        running = sum(model.engine.pending() for model in self._models if model.engine is not None)
        return waiting + running + len(self._events)

    def step(self) -> list[Event]:
        """One step of every loaded model that has work, and before it the loading of one that is wanted."""
        events, self._events = self._events, []
        wanted = min((model for model in self._models if self._is_wanted(model)), key=_since, default=None)
        told, self._told = self._told, wanted
        if wanted and (wanted is told or not events):
            events += self._make_room_and_load(wanted)
        now, needy = self._clock(), None
        for model in self._loaded():
            assert model.engine is not None
            if not self._makes_way(model):
                while model.waiting:
                    model.engine.admit(model.waiting.popleft()[1])
            if model.busy:
                model.used_at = now
                made = model.engine.step()
                if not model.busy and any(isinstance(event, Deferred) for event in made):
                    needy = model  # it has nothing else to run, and yet not enough
                events += [replace(each, by=model.engine.info) if isinstance(each, Embedded) else each for each in made]
        if needy is not None:
            self._unload_idle_ones_but(needy)
        self._relieve()
        for event in events:
            if isinstance(event, Generated | Embedded | Rejected | Deferred):
                self._works.pop(event.id, None)
        return events

    def close(self) -> None:
        """Drops all work and unloads all models."""
        for model in self._models:
            model.waiting.clear()
            self._unload(model)
        self._works.clear()
        self._events.clear()

    # -- who is loaded -----------------------------------------------------------------------------------------------

    def _loaded(self) -> list[_Model]:
        return [model for model in self._models if model.engine is not None]

    def _is_wanted(self, model: _Model) -> bool:
        return model.engine is None and bool(model.waiting)

    def _fits(self, models: Sequence[_Model]) -> bool:
        """Whether these may be loaded together; one alone may take all but a sixteenth."""
        if self._memory_bytes is None:
            return True
        weights = sum(model.weights_bytes for model in models)
        least = self._least_share * self._memory_bytes * (len(models) if len(models) > 1 else 0.5)
        return weights + least <= self._memory_bytes

    def _share(self, models: Sequence[_Model]) -> int | None:
        """What each of these may take besides its weights."""
        if self._memory_bytes is None:
            return None
        return (self._memory_bytes - sum(model.weights_bytes for model in models)) // max(1, len(models))

    def _makes_way(self, model: _Model) -> bool:
        """Whether a loaded model takes nothing new, because another has waited long enough for its memory."""
        if model is self._leaving:
            return True
        others = [other for other in self._models if self._is_wanted(other)]
        if model.engine is None or not others or self._fits([*self._loaded(), min(others, key=_since)]):
            return False
        longest_loaded = min(self._loaded(), key=lambda each: each.loaded_at)
        return model is longest_loaded and self._clock() - model.loaded_at >= self._turn_s

    def _make_room_and_load(self, wanted: _Model) -> list[Event]:
        idle = sorted((each for each in self._loaded() if not each.busy), key=lambda each: each.used_at)
        while not self._fits([*self._loaded(), wanted]):
            gone = next((each for each in idle if not each.waiting or self._makes_way(each)), None)
            if gone is None:
                return []
            idle.remove(gone)
            self._unload(gone)
        share = self._share([*self._loaded(), wanted])
        if not self._resize(share):
            return []  # they take nothing that does not fit from now on, and soon will
        try:
            self._load(wanted)
        except BackendError as error:
            rejected: list[Event] = [
                Rejected(work.id, f"{wanted.files.name} cannot be loaded: {error}") for _, work in wanted.waiting
            ]
            wanted.waiting.clear()
            self._reshare()
            return rejected
        return []

    def _relieve(self) -> None:
        """Lets a model leave while the process's memory is near its limit, one at a look."""
        if (use := self._watch.look()) is not None:
            loaded = self._loaded()
            self._leaving = min(loaded, key=lambda each: each.used_at) if use.near and len(loaded) > 1 else None
            if self._leaving is not None:
                _log.warning("this process has %s: %s leaves", use, self._leaving.files.name)
        if self._leaving is not None and not self._leaving.busy:
            self._unload(self._leaving)
            self._leaving = None

    def _load(self, model: _Model) -> None:
        model.engine = self._open_one(model.files, self._memory_bytes)
        model.loaded_at = model.used_at = self._clock()
        self._watch.hurry()
        self._reshare()

    def _unload_idle_ones_but(self, needy: _Model) -> None:
        for model in self._loaded():
            if model is not needy and not model.busy and not model.waiting:
                self._unload(model)

    def _unload(self, model: _Model) -> None:
        if model.engine is None:
            return
        model.engine.close()
        model.engine = None
        give_back()
        self._reshare()

    def _reshare(self) -> None:
        self._resize(self._share(self._loaded()))

    def _resize(self, share: int | None) -> bool:
        """Gives each loaded model this much for its work; says whether none uses more."""
        enough = [model.engine.resize(share) for model in self._models if model.engine is not None]
        return all(enough)


def _since(model: _Model) -> float:
    return model.wanted_at


def _known(default: EngineInfo, files: ModelFiles) -> EngineInfo:
    return EngineInfo(default.kind, default.backend, default.device, files.name, files.aliases, "", "")
