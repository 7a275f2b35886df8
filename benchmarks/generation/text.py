"""Whether greedy answers through the queue, batched, are those that `mlx_lm.generate` makes of each prompt alone.

A batch is computed in another order than a single row, so two tokens that are about equally likely may change places:
where an answer differs, it is said by how much the token that won alone was ahead of the next.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from ..means.report import Report, progress
from ..means.servers import server
from .program import program
from .queueing import LIMIT_S, generating, submit
from .subjects import Prompts, questions
from .verdict import Verdict

if TYPE_CHECKING:
    from .subjects import Subject

_NEAR_TIE = 1e-3
"""In logits: float32 rounding moves them by less, float16 by about this."""
_SHOWN = 8


def tell(report: Report, subject: Subject, *, count: int, mean_tokens: int, longest: int) -> list[Verdict]:
    """`longest`: of the prompts, in tokens."""
    payloads = _payloads(subject, count, mean_tokens, longest)
    with (
        server() as on,
        generating(on, subject.folder, subject.environment),
        program(subject.folder, on.folder / "solo.log", subject.environment) as alone,
    ):
        batched = [_shown(handle.result(timeout_s=LIMIT_S).text) for handle in submit(on, payloads)]
        progress(f"{subject.name}: {count} prompts batched through the queue")
        single: list[str] = []
        for start in range(0, count, 20):
            single += [_shown(text) for text in alone.ask("solo", payloads=payloads[start : start + 20])]
            progress(f"{subject.name}: {len(single)} of them alone")
        different = [number for number in range(count) if batched[number] != single[number]]
        rows = []
        for number in different:
            where = alone.ask("gap_at", payload=payloads[number], text=batched[number])
            rows.append({"prompt": number, **where})
    same = count - len(different)
    ties = sum(row["gap"] < _NEAR_TIE for row in rows)
    notes = [f"prompts of 5 to {longest} tokens, answers of at most {mean_tokens // 2} to {3 * mean_tokens // 2}"]
    notes += [
        f"prompt {row['prompt']} parts at token {row['token']}, where the better of two was ahead by {row['gap']:.2g}"
        for row in rows[:_SHOWN]
    ]
    report.add(f"text_{subject.name}_different", rows)
    title = f"Greedy text through the queue against mlx_lm.generate: {subject.name}"
    summary = {"prompts": count, "identical": same, "different": len(rows), f"of them within {_NEAR_TIE:g}": ties}
    report.table(f"text_{subject.name}", title, [summary], notes)
    seen = f"{same} of {count}" + (f", {ties} near-ties" if rows else "")
    return [Verdict("greedy text, batched through Redis = alone", subject.name, "all", seen, same == count)]


def _payloads(subject: Subject, count: int, mean_tokens: int, longest: int) -> list[dict[str, Any]]:
    """Questions as messages and as prompts, and other texts, of mixed lengths."""
    prompts, chance, asked = Prompts(subject.folder, 4), random.Random(4), questions()
    payloads = []
    for number in range(count):
        payload: dict[str, Any] = {"temperature": 0.0}
        payload["max_tokens"] = chance.randint(max(1, mean_tokens // 2), 3 * mean_tokens // 2)
        question = asked[number % len(asked)]
        if number % 4 == 0:
            payload["messages"] = [{"role": "user", "content": question}]
        elif number % 4 == 1:
            payload["prompt"] = f"Q: {question}\nA:"
        else:
            payload["prompt"] = prompts.between(5, longest)
        payloads.append(payload)
    return payloads


def _shown(text: str) -> str:
    """Without half a character at the end, which `max_tokens` may leave and Impetus does not show."""
    return text.rstrip("\ufffd")
