"""What the queue costs: the same jobs through Redis and through mlx-lm's `BatchGenerator` bare, in turns.

A machine that others use, or that grows hot, is not as fast in one minute as in the next. So the runs are short and
many, bare and Redis by turns, and a run through Redis is held against the mean of the bare ones right before and right
after it: what changes steadily falls out. Of these ratios the median is told, and between which of them the true one
lies with 95 % certainty, whatever they are spread like (the order statistics that a binomial of one half says). The
turns go on until that is less than is asked, or there were enough of them. The middle half, and all, stand beside it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ..means.report import Report, median, median_within, progress, quantile, spread
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

TURNS_A_ROUND = 8
"""At most; of the first round at least."""
_ASKED, _SPREAD_ASKED = 0.95, 0.05


def tell(report: Report, subject: Subject, *, turns: int, seconds: float) -> list[Verdict]:
    """`turns`: the most; `seconds`: what a run should take."""
    with (
        server() as on,
        generating(on, subject.endless, subject.environment),
        program(subject.endless, on.folder / "bare.log", subject.environment) as alone,
    ):
        count, mean = sizes(subject, alone, seconds)
        payloads = Prompts(subject.endless, 0).payloads(count, mean)
        bare = [run_bare(alone, payloads)]
        redis: list[Run] = []
        for number in range(1, turns + 1):
            redis.append(run_backlog(on, payloads))
            payloads = Prompts(subject.endless, number).payloads(count, mean)
            bare.append(run_bare(alone, payloads))
            ratios = _ratios(bare, redis)
            low, high = median_within(ratios)
            progress(
                f"{subject.name}, turn {number} of at most {turns}: {ratios[-1]:.2f} of bare, the median "
                f"{median(ratios):.2f} ({low:.2f}-{high:.2f})"
            )
            if number >= TURNS_A_ROUND and high - low < _SPREAD_ASKED:
                break
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
    low, high = median_within(ratios)
    half = f"{quantile(ratios, 0.25):.2f}-{quantile(ratios, 0.75):.2f}"
    return [
        Verdict(
            f"tokens/s: {BACKLOG} / {BARE}", subject.name, f">= {_ASKED:g}, known to {_SPREAD_ASKED:g}",
            f"{median(ratios):.3f} (95 %: {low:.3f}-{high:.3f}; middle half {half}, all {spread(ratios)})",
            median(ratios) >= _ASKED and high - low < _SPREAD_ASKED,
        )
    ]  # fmt: skip
