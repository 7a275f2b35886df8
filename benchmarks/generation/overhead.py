"""What the queue costs: the same jobs through Redis and through mlx-lm's `BatchGenerator` bare, in turns.

A machine that others use, or that grows hot, is not as fast in one minute as in the next. So the runs are short and
many, bare and Redis by turns, and a run through Redis is held against the mean of the bare ones right before and right
after it: what changes steadily falls out. Of these ratios the median is told, and how far the middle half of them lies
apart, which is what a median's worth depends on; the least and the most stand beside it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ..means.report import Report, median, progress, quantile, spread
from ..means.servers import server
from .program import program
from .queueing import generating
from .rates import BACKLOG, BARE, run_backlog, run_bare, sizes
from .subjects import Prompts
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rates import Run
    from .subjects import Subject

TURNS_A_ROUND = 5
_ASKED, _SPREAD_ASKED = 0.95, 0.05


def tell(report: Report, subject: Subject, *, turns: int, seconds: float) -> list[Verdict]:
    """`seconds`: what a run should take."""
    with (
        server() as on,
        generating(on, subject.endless, subject.environment),
        program(subject.endless, on.folder / "bare.log", subject.environment) as alone,
    ):
        count, mean = sizes(subject, alone, seconds)
        payloads = [Prompts(subject.endless, number).payloads(count, mean) for number in range(turns + 1)]
        bare = [run_bare(alone, payloads[0])]
        redis: list[Run] = []
        for number in range(turns):
            redis.append(run_backlog(on, payloads[number]))
            bare.append(run_bare(alone, payloads[number + 1]))
            progress(f"{subject.name}, turn {number + 1} of {turns}: {_ratios(bare, redis)[-1]:.2f} of bare")
    return _told(report, subject, bare, redis, f"{count} jobs of {mean} tokens on average a run")


def _ratios(bare: Sequence[Run], redis: Sequence[Run]) -> list[float]:
    around = [(before.per_s + after.per_s) / 2 for before, after in pairwise(bare)]
    return [run.per_s / mean for run, mean in zip(redis, around, strict=True)]


def _told(report: Report, subject: Subject, bare: Sequence[Run], redis: Sequence[Run], note: str) -> list[Verdict]:
    def cpu_ms(runs: Sequence[Run], process: str) -> float:
        return median([1e6 * run.cpu_s[process] / run.tokens for run in runs])

    rows = [
        {
            "side": name,
            "tokens/s": median([run.per_s for run in runs]),
            "range": spread([run.per_s for run in runs]),
            "CPU ms a 1,000 tokens": ", ".join(f"{each} {cpu_ms(runs, each):,.0f}" for each in runs[0].cpu_s),
        }
        for name, runs in ((BARE, bare), (BACKLOG, redis))
    ]
    report.table(f"overhead_{subject.name}", f"Redis and bare in {len(redis)} turns: {subject.name}", rows, [note])
    ratios = _ratios(bare, redis)
    report.add(f"overhead_{subject.name}_ratios", ratios)
    low, high = quantile(ratios, 0.25), quantile(ratios, 0.75)
    return [
        Verdict(
            f"tokens/s: {BACKLOG} / {BARE}", subject.name, f">= {_ASKED:g}, middle half within {_SPREAD_ASKED:g}",
            f"{median(ratios):.2f} (middle half {low:.2f}-{high:.2f}, all {spread(ratios)})",
            median(ratios) >= _ASKED and high - low < _SPREAD_ASKED,
        )
    ]  # fmt: skip
