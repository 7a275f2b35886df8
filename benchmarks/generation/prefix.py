"""What it is worth that many prompts begin alike: one long prefix for all of them, against one for each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..means.report import Report, median, progress, spread
from ..means.servers import server
from .queueing import LIMIT_S, generating, submit
from .subjects import Prompts
from .verdict import Verdict

if TYPE_CHECKING:
    from ..means.servers import Server
    from .subjects import Subject

_PREFIX_TOKENS, _OWN_TOKENS, _NEW_TOKENS = 1500, 20, 16
SHARED, DISTINCT = "one prefix for all", "a prefix for each"


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    first_token_s: float
    """The mean."""
    cached: float
    """The mean."""
    prompt: float
    """The mean."""


def tell(report: Report, subject: Subject, *, count: int, rounds: int) -> list[Verdict]:
    prompts = Prompts(subject.long, 6)
    runs: dict[str, list[Run]] = {SHARED: [], DISTINCT: []}
    with server() as on, generating(on, subject.long, subject.environment):
        for number in range(rounds):
            for name in (SHARED, DISTINCT) if number % 2 == 0 else (DISTINCT, SHARED):
                # New prefixes every time: what an earlier round left behind helps nobody.
                prefixes = [prompts.of(_PREFIX_TOKENS) for _ in range(1 if name == SHARED else count)] * count
                run = _run(on, [f"{prefix} {prompts.of(_OWN_TOKENS)}" for prefix in prefixes[:count]])
                runs[name].append(run)
                progress(f"round {number + 1}: {name}: {run.seconds:.2f} s, {run.cached:.0f} tokens cached")
    rows = [
        {
            "prompts": name,
            "s for all": median([run.seconds for run in each]),
            "range": spread([run.seconds for run in each]),
            "first token ms": 1000 * median([run.first_token_s for run in each]),
            "prompt tokens": median([run.prompt for run in each]),
            "of them cached": median([run.cached for run in each]),
        }
        for name, each in runs.items()
    ]
    gain = rows[1]["s for all"] / rows[0]["s for all"]  # type: ignore[operator]  # both are numbers
    sooner = rows[1]["first token ms"] / rows[0]["first token ms"]  # type: ignore[operator]
    name = subject.long_name()
    notes = [
        f"one prefix for all: {gain:.1f}x as fast, first token {sooner:.1f}x as soon (from when the engine took it)",
        f"{count} requests at once, {_NEW_TOKENS} new tokens each",
    ]
    report.table("prefix", f"Prompts that begin with {_PREFIX_TOKENS:,} tokens: {name}", rows, notes)
    seen = f"{gain:.1f}x as fast, first token {sooner:.1f}x as soon"
    cached = float(rows[0]["of them cached"])  # type: ignore[arg-type]
    return [Verdict(f"{count} requests with one prefix / with {count}", name, "a gain", seen, gain > 1 and cached > 0)]


def _run(on: Server, texts: list[str]) -> Run:
    started = time.perf_counter()
    payloads: list[dict[str, Any]] = [{"prompt": text, "max_tokens": _NEW_TOKENS, "temperature": 0.0} for text in texts]
    results = [handle.result(timeout_s=LIMIT_S) for handle in submit(on, payloads)]
    seconds = time.perf_counter() - started
    return Run(
        seconds,
        sum(result.timings.first_token_s for result in results) / len(results),
        # Builds from before there was a cache do not name it.
        sum(getattr(result.usage, "cached_tokens", 0) for result in results) / len(results),
        sum(result.usage.prompt_tokens for result in results) / len(results),
    )
