"""How long a new request waits for its first token while 15 others decode, and how long those stand still for it.

In the engine: its `step` is called here, in a process without a queue. A decode step is one in which the others got a
token; its usual time is measured just before the newcomer, and the newcomer's own time just so, with nobody else.
Through Redis: from enqueueing to the first text in the job's token stream; the others' pauses are between the entries
of one of their streams, by Redis's clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from impetus_producer.contract import STREAM_KEY

from ..means.report import Report, median, progress
from ..means.servers import server
from .program import program
from .queueing import LIMIT_S, generating, submit
from .subjects import Prompts
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.protocol import Engine
    from impetus_producer import GenerationHandle

    from ..means.servers import Server
    from .subjects import Subject

_OTHERS = 15
_SETTLING_STEPS, _USUAL_STEPS = 32, 16
_PROMPT_TOKENS = (50, 1000)
_OTHERS_TOKENS, _NEW_TOKENS = 3000, 8
_STEPS_ASKED = 3


@dataclass(frozen=True, slots=True)
class Arrival:
    """One newcomer. Times in milliseconds."""

    alone_ms: float
    first_token_ms: float
    decode_steps: float
    """That the others made until its first token, the one that brought it included; NaN where that is not seen."""
    step_ms: float
    longest_pause_ms: float

    @property
    def waited_steps(self) -> float:
        return (self.first_token_ms - self.alone_ms) / self.step_ms


def tell(report: Report, subject: Subject, *, times: int) -> list[Verdict]:
    prompts = Prompts(subject.long, 5)
    others = [prompts.between(20, 40) for _ in range(_OTHERS)]
    # In Redis, too, a step is what it is in the engine: by the streams it cannot be told from the worker's own pace.
    arrivals: dict[tuple[str, int], list[Arrival]] = {}
    with server() as on:
        with program(subject.long, on.folder / "engine.log", subject.environment) as engine:
            for tokens in _PROMPT_TOKENS:
                asked = [[prompts.of(tokens), prompts.of(tokens)] for _ in range(times + 1)]
                seen = engine.ask("first_token", others=others, newcomers=asked)
                arrivals["in the engine", tokens] = [Arrival(**each) for each in seen[1:]]  # the first one warms up
                progress(f"{subject.long_name()}: {tokens} tokens, in the engine, {times} times")
        with generating(on, subject.long, subject.environment):
            for tokens in _PROMPT_TOKENS:
                step_ms = median([each.step_ms for each in arrivals["in the engine", tokens]])
                found = _through_redis(on, prompts, others, tokens, step_ms, times)
                if found is None:
                    break
                arrivals["through Redis", tokens] = found
                progress(f"{subject.long_name()}: {tokens} tokens, through Redis, {times} times")
    return _told(report, subject, arrivals)


def _told(report: Report, subject: Subject, arrivals: dict[tuple[str, int], list[Arrival]]) -> list[Verdict]:
    rows: list[dict[str, Any]] = []
    for (where, tokens), each in arrivals.items():
        rows.append(
            {
                "measured": where,
                "prompt": f"{tokens} tokens",
                "alone ms": median([one.alone_ms for one in each]),
                "beside 15 ms": median([one.first_token_ms for one in each]),
                "a step ms": median([one.step_ms for one in each]),
                "waited, steps": median([one.waited_steps for one in each]),
                "most": max(one.waited_steps for one in each),
                "steps made": median([one.decode_steps for one in each]) if where == "in the engine" else None,
                "others' pause ms": median([one.longest_pause_ms for one in each]),
                "longest": max(one.longest_pause_ms for one in each),
                "in steps": median([one.longest_pause_ms / one.step_ms for one in each]),
            }
        )
    notes = [
        "waited: what the first token came later than alone, in decode steps of the 15 others",
        "steps made: by the others until then, the one that brought it included",
        "others' pause: the longest that a running request went without a token while the newcomer's prompt was read",
    ]
    if not any(where == "through Redis" for where, _ in arrivals):
        notes.append("through Redis it cannot be measured: this build writes no token streams")
    name = subject.long_name()
    report.add(f"first_token_{name}_all", [
        {"measured": where, "tokens": tokens, **{field.name: getattr(one, field.name) for field in fields(one)}}
        for (where, tokens), each in arrivals.items() for one in each
    ])  # fmt: skip
    report.table(f"first_token_{name}", f"First token of a newcomer while {_OTHERS} decode: {name}", rows, notes)
    return [
        Verdict(
            f"first token, {row['prompt']}, {row['measured']}", name, f"<= {_STEPS_ASKED} steps + its own prefill",
            _seen(row), row["waited, steps"] <= _STEPS_ASKED,
        )
        for row in rows
    ]  # fmt: skip


def _seen(row: dict[str, Any]) -> str:
    made = f" ({row['steps made']:g} made)" if row["steps made"] else ""
    return f"{row['waited, steps']:.1f} steps + its own{made}"


def open_engine(folder: str) -> Engine:
    """Impetus's engine of the model in `folder`, as the engine process opens it."""
    from impetus_backends import dispatcher
    from impetus_backends.engine_config import EngineConfig

    return dispatcher.open_engine(EngineConfig("generation", model=folder, backend="mlx", max_concurrent=_OTHERS + 1))


def in_engine(engine: Engine, others: Sequence[str], newcomers: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """`Arrival`s as dictionaries. `newcomers`: each a prompt to run alone, and one as long to run beside the others."""
    drive = _Drive(engine)
    alone_ms = [drive.first_token_ms(drive.admit(alone, _NEW_TOKENS)) for alone, _ in newcomers]
    running = [drive.admit(prompt, _OTHERS_TOKENS) for prompt in others]
    for _ in range(_SETTLING_STEPS):
        drive.step()
    arrivals = []
    for own_ms, (_, prompt) in zip(alone_ms, newcomers, strict=True):
        begun = time.perf_counter()
        usual = [begun, *(drive.step() for _ in range(_USUAL_STEPS))]
        step_ms = 1000 * median([after - before for before, after in pairwise(usual)])
        drive.decoded_at = [time.perf_counter()]
        admitted_at = drive.decoded_at[0]
        first_ms = drive.first_token_ms(drive.admit(prompt, _NEW_TOKENS))
        if drive.finished.keys() & set(running):
            raise RuntimeError("the others ended before the newcomers were through: give them more tokens")
        at = drive.decoded_at
        # The clock of the first token is read within the step that brought it, which ends a moment later.
        before_it = [number for number, when in enumerate(at) if when - admitted_at < first_ms / 1000]
        arrival = Arrival(
            alone_ms=own_ms,
            first_token_ms=first_ms,
            decode_steps=len(before_it),
            step_ms=step_ms,
            longest_pause_ms=1000 * max(after - before for before, after in pairwise(at)),
        )
        arrivals.append({field.name: getattr(arrival, field.name) for field in fields(arrival)})
    for work_id in running:
        engine.cancel(work_id)
    while engine.pending():
        engine.step()
    return arrivals


class _Drive:
    """Calls an engine's `step`, and notes when those who run got a token."""

    def __init__(self, engine: Engine) -> None:
        from impetus_backends import protocol

        self._engine = engine
        self._protocol = protocol
        self._streams = {"stream": True} if _has_field(protocol.GenerationWork, "stream") else {}
        self._ids = 0
        self.finished: dict[int, Any] = {}
        self.decoded_at: list[float] = []

    def admit(self, prompt: str, max_tokens: int) -> int:
        self._ids += 1
        options: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, **self._streams}
        self._engine.admit(
            self._protocol.GenerationWork(
                id=self._ids, prompt=prompt, messages=None, max_tokens=max_tokens, **options
            )
        )  # fmt: skip
        return self._ids

    def step(self) -> float:
        """Returns when it ended."""
        events = self._engine.step()
        now = time.perf_counter()
        spoke = False
        for event in events:
            if isinstance(event, self._protocol.Generated):
                self.finished[event.id] = event
            elif isinstance(event, self._protocol.Rejected):
                raise RuntimeError(f"the engine refused the bench's request: {event.message}")
            elif type(event).__name__ == "Progress":
                spoke = True
        # An engine without streams says nothing while it decodes; each of its steps is one of decoding.
        if spoke or not self._streams:
            self.decoded_at.append(now)
        return now

    def first_token_ms(self, work_id: int) -> float:
        """Steps until that request is done; returns the engine's own word for its first token."""
        while work_id not in self.finished:
            self.step()
        return 1000 * float(self.finished[work_id].first_token_s)


def _has_field(kind: Any, name: str) -> bool:
    return name in {field.name for field in fields(kind)}


def _through_redis(
    on: Server, prompts: Prompts, others: Sequence[str], tokens: int, step_ms: float, times: int
) -> list[Arrival] | None:
    """None where the build does not stream."""
    alone_ms = []
    for _ in range(times + 1):
        first_ms = _streamed_ms(on, prompts.of(tokens))
        if first_ms is None:
            return None
        alone_ms.append(first_ms)
    running = submit(on, [_payload(prompt, _OTHERS_TOKENS) for prompt in others])
    for handle in running:
        _first_text(on, handle)
    arrivals = []
    for own_ms in alone_ms:
        asked_ms = _redis_ms(on)
        first_ms = _streamed_ms(on, prompts.of(tokens))
        entries: Any = on.connection.xrange(STREAM_KEY + running[0].job_id, min=int(asked_ms))
        at = [asked_ms, *(int(entry.split(b"-")[0]) for entry, _ in entries)]
        if first_ms is None or any(handle.status() != "started" for handle in running):
            break  # what was measured beside fewer than 15 is not what was asked
        pause_ms = float(max((after - before for before, after in pairwise(at)), default=0))
        arrivals.append(Arrival(own_ms, first_ms, float("nan"), step_ms, pause_ms))
    for handle in running:
        handle.cancel()
    for handle in running:
        _until_over(handle)
    return arrivals[1:]


def _payload(prompt: str, max_tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "stream": True}


def _streamed_ms(on: Server, prompt: str) -> float | None:
    """Runs a new job; milliseconds from before it was enqueued to its first text. None where it has no stream."""
    started = time.perf_counter()
    handle = submit(on, [_payload(prompt, _NEW_TOKENS)])[0]
    first_at = _first_text(on, handle)
    handle.result(timeout_s=LIMIT_S)
    return None if first_at is None else 1000 * (first_at - started)


def _first_text(on: Server, handle: GenerationHandle) -> float | None:
    """When the first text, or what ends the stream, was there; None if the job ended without a stream."""
    seen: Any = "0"
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        answer: Any = on.connection.xread({STREAM_KEY + handle.job_id: seen}, block=200)
        for entry_id, entry in next(iter(dict(answer).values())) if answer else ():
            seen = entry_id
            if entry[b"event"] in (b"text", b"end"):
                return time.perf_counter()
        if not answer and handle.status() in ("finished", "failed"):
            return None
    return None


def _until_over(handle: GenerationHandle) -> None:
    deadline = time.monotonic() + LIMIT_S
    while handle.status() in ("queued", "started") and time.monotonic() < deadline:
        time.sleep(0.02)


def _redis_ms(on: Server) -> float:
    seconds, micros = on.connection.time()
    return 1000 * int(seconds) + int(micros) / 1000
