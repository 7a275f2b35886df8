"""What prompt lookup is worth to jobs that come one at a time, and whether it changes what they say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..means.report import Report, median, progress, spread
from ..means.servers import server
from .queueing import LIMIT_S, generating, submit
from .subjects import Prompts
from .verdict import Verdict

if TYPE_CHECKING:
    from ..means.servers import Server
    from .subjects import Subject

_PROMPT_TOKENS, _NEW_TOKENS = 60, 200
WITHOUT, WITH = "token by token", "with prompt lookup"


def tell(report: Report, subject: Subject, *, jobs: int, rounds: int) -> list[Verdict]:
    prompts = Prompts(subject.endless, 7)
    payloads: list[dict[str, Any]] = [
        {"prompt": prompts.of(_PROMPT_TOKENS), "max_tokens": _NEW_TOKENS, "temperature": 0.0} for _ in range(jobs)
    ]
    rates: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    texts: dict[str, list[str]] = {}
    # Each worker has a server of its own, so that both are warm and take turns.
    with (
        server() as plain,
        server() as looking,
        generating(plain, subject.endless, subject.environment),
        generating(looking, subject.endless, subject.environment, more=["--prompt-lookup-tokens", "8"]),
    ):
        sides = {WITHOUT: plain, WITH: looking}
        for number in range(rounds):
            for name in (WITHOUT, WITH) if number % 2 == 0 else (WITH, WITHOUT):
                rate, texts[name] = _run(sides[name], payloads)
                rates[name].append(rate)
                progress(f"round {number + 1}: {name}: {rate:,.0f} tokens/s")
    gains = [ours / theirs for ours, theirs in zip(rates[WITH], rates[WITHOUT], strict=True)]
    equal = sum(ours == theirs for ours, theirs in zip(texts[WITH], texts[WITHOUT], strict=True))
    rows = [{"tokens": name, "tokens/s": median(each), "range": spread(each)} for name, each in rates.items()]
    seen = f"{median(gains):.2f}x as fast ({spread(gains)}), {equal} of {jobs} texts equal"
    report.table("lookup", f"One greedy job at a time: {subject.name}", rows, [seen])
    return [Verdict("prompt lookup, of token by token", subject.name, "a gain, equal texts", seen,
                    median(gains) > 1 and equal == jobs)]  # fmt: skip


def _run(on: Server, payloads: list[dict[str, Any]]) -> tuple[float, list[str]]:
    """Tokens a second, one job after another, and what they said."""
    started, tokens, texts = time.perf_counter(), 0, []
    for payload in payloads:
        (handle,) = submit(on, [payload])
        result = handle.result(timeout_s=LIMIT_S)
        tokens += result.usage.completion_tokens
        texts.append(result.text)
    return tokens / (time.perf_counter() - started), texts
