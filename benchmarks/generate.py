"""Generation: what the queue costs, and what neighbours do to each other, on two models.

\b
rates        tokens/s through Redis with 16 rows, against mlx-lm's BatchGenerator bare, one job at a time, and
             mlx_lm.server under 16 HTTP clients: the same jobs, greedy, all of exactly their max_tokens
overhead     the first two of these in many short turns, for a ratio that a busy or hot machine does not blur
text         greedy answers, batched through the queue, against mlx_lm.generate alone, letter by letter
first-token  from asking to the first token while 15 others decode, and how long those stand still meanwhile;
             in the engine itself, and through Redis by the job's token stream
churn        500 jobs, a third of them cancelled, the engine killed twice: what became of each, and of memory
lookup       one greedy job after another, whose answers soon repeat themselves: with --prompt-lookup-tokens 8, against
             without
prefix       50 prompts that begin with the same 1,500 tokens, against 50 that do not

The models: tests/data/models/tiny-says, for rates with a token that ends no answer; a tiny random one that reads
4,096 tokens, for first-token and prefix; a random one of 30 million float32 weights, made on the fly. MLX's build for
Linux multiplies matrices slowly, so OpenBLAS is preloaded into every side where there is one: on one thread, because
on a Mac, too, the cores that the worker runs on do not do the model's work.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .generation import churn, first_token, lookup, overhead, prefix, rates, text
from .generation.openblas import find_blas
from .generation.subjects import subjects
from .means.report import Report, json_option

if TYPE_CHECKING:
    from .generation.subjects import Subject
    from .generation.verdict import Verdict

PARTS = ("rates", "overhead", "text", "first-token", "churn", "prefix", "lookup")


@click.command("generate", help=__doc__, short_help="Generation through Redis, against mlx-lm bare and its server.")
@click.option("--model", type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
              help="A folder with an MLX model, instead of the bench's two.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part; may be given more than once.")
@click.option("--quick", is_flag=True, help="A look in a minute and a half: fewer jobs, one round, the tiny model.")
@click.option("--rounds", type=click.IntRange(1), help="How often each side runs.  [default: 3; --quick: 1]")
@click.option("--seconds", type=float, help="What a side's run should take.  [default: 5; --quick: 1.5]")
@click.option("--openblas", type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
              help="A libopenblas.so to preload, on Linux.  [default: the one that is found]")  # fmt: skip
@click.option("--blas-threads", default=1, show_default=True, type=click.IntRange(1))
@json_option("generate")
def command(
    model: Path | None,
    only: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    openblas: Path | None,
    blas_threads: int,
    json_path: Path,
) -> None:
    rounds, seconds = rounds or (1 if quick else 3), seconds or (1.5 if quick else 5.0)
    parts = only or PARTS
    with tempfile.TemporaryDirectory(prefix="impetus-bench-") as folder:
        work = Path(folder)
        blas = find_blas(work, blas_threads, openblas)
        report = Report("generate", parts=" ".join(parts), quick=quick, rounds=rounds, seconds=seconds, blas=blas.name)
        all_subjects = subjects(work, blas, model)
        chosen = all_subjects[:1] if quick else all_subjects
        verdicts: list[Verdict] = []
        if "rates" in parts:
            for number, subject in enumerate(chosen):
                # The larger model is slow, and its jobs so long that a round says more.
                verdicts += rates.tell(report, subject, rounds=max(1, rounds - number), seconds=seconds)
        if "overhead" in parts:
            for subject in chosen:
                turns = overhead.TURNS_A_ROUND * rounds
                verdicts += overhead.tell(report, subject, turns=turns, seconds=seconds / 2)
        if "text" in parts:
            for number, subject in enumerate(chosen):
                verdicts += _text(report, subject, quick=quick, large=number > 0)
        if "first-token" in parts:
            for number, subject in enumerate(chosen):
                verdicts += first_token.tell(report, subject, times=2 if quick or number else 7)
        if "churn" in parts:
            verdicts += churn.tell(report, chosen[0], jobs=80 if quick else 500)
        if "prefix" in parts:
            verdicts += prefix.tell(report, chosen[0], count=8 if quick else 50, rounds=min(2, rounds))
        if "lookup" in parts:
            for subject in chosen:
                verdicts += lookup.tell(report, subject, jobs=3 if quick else 8, rounds=rounds)
        report.table("asked", "What was asked for", [verdict.row() for verdict in verdicts])
        report.write(json_path)


def _text(report: Report, subject: Subject, *, quick: bool, large: bool) -> list[Verdict]:
    if large:
        return text.tell(report, subject, count=32, mean_tokens=16, longest=200)
    return text.tell(report, subject, count=40 if quick else 200, mean_tokens=40, longest=200)
