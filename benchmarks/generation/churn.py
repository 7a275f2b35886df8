"""500 jobs that come and go: a third is cancelled at random moments, and the engine is killed twice.

A fixed number of jobs is under way at any time. The engine process is killed early, at 8 and 16 % of the jobs, so that
the one which then does most of the work shows whether its memory grows: from a quarter of the jobs to the end.

A job is lost if it ends neither finished, failed, cancelled nor stopped, or cancelled without having been asked to.
It is finished twice if its result stream holds two successes, or one beside being cancelled.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impetus_producer.enqueueing import jobs
from impetus_producer.errors import ImpetusError

from ..means.report import Report, median, progress
from ..means.servers import Server, server, worker_processes
from .queueing import generating, submit
from .subjects import Prompts
from .verdict import Verdict

if TYPE_CHECKING:
    from impetus_producer import GenerationHandle

    from .subjects import Subject

_LIMIT_S = 120.0
_UNDER_WAY = 40
_MEAN_TOKENS = 40
_KILLS_AT = (0.08, 0.16)
_MEMORY_FROM = 0.25
_LOOK_S = 0.02
_MEMORY_LOOK_S = 0.2
_FLAT_BYTES, _FLAT_SHARE = 32e6, 0.1
_SUCCESS = b"1"
_OVER = ("finished", "failed", "canceled", "stopped")


@dataclass(slots=True)
class _Job:
    handle: GenerationHandle
    asked_at: float
    cancel_after_s: float | None
    cancelled: bool = False
    """Whether a cancel was asked for in time, by its answer."""
    status: str = ""


@dataclass(slots=True)
class _Memory:
    """What the engine held of main memory, by process."""

    looked_at: float = 0.0
    engine: int = 0
    samples: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """(share of the jobs that had ended, bytes)."""

    def look(self, on: Server, share: float) -> None:
        now = time.monotonic()
        if now - self.looked_at < _MEMORY_LOOK_S:
            return
        self.looked_at = now
        engines = worker_processes(on)[1]
        self.engine = engines[0] if engines else 0
        for pid in engines:
            with contextlib.suppress(OSError, IndexError, ValueError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.samples.setdefault(pid, []).append((share, pages * os.sysconf("SC_PAGE_SIZE")))


def tell(report: Report, subject: Subject, *, jobs: int) -> list[Verdict]:
    memory = _Memory()
    # Only what ends by `max_tokens` can be told to be a job's whole work; and it keeps the jobs of one kind of length.
    with server() as on, generating(on, subject.endless, subject.environment):
        started = time.monotonic()
        done, kills = _run(on, subject, jobs, memory, started + _LIMIT_S)
        seconds = time.monotonic() - started
        lost, twice = _judged(on, done)
    ends = Counter(job.status for job in done)
    asked = sum(job.cancelled for job in done)
    rows: list[dict[str, Any]] = [
        {
            "jobs": len(done), "cancels asked in time": asked, "engine killed": kills, "seconds": seconds,
            **{status: ends[status] for status in _OVER}, "lost": len(lost), "finished twice": len(twice),
        }
    ]  # fmt: skip
    begun, ended = _growth(memory)
    stayed = len(memory.samples) <= kills + 1
    flat = stayed and ended - begun <= max(_FLAT_BYTES, _FLAT_SHARE * begun)
    remembered = (
        f"{begun / 1e6:.0f} to {ended / 1e6:.0f} MB"
        + ("" if stayed else f", and it was started {len(memory.samples)} times")
        if begun
        else "not seen (this system has no /proc)"
    )
    notes = [f"the engine's memory from a quarter of the jobs to the end: {remembered}"]
    notes += [f"lost: {job.handle.job_id} is {job.status}" for job in lost[:5]]
    report.add("churn_memory", {str(pid): samples for pid, samples in memory.samples.items()})
    report.table("churn", f"{jobs} jobs, cancelled and killed at random: {subject.name}", rows, notes)
    return [
        Verdict(
            f"{jobs} jobs: lost",
            subject.name,
            "none",
            f"{len(lost)}, the engine killed {kills} times",
            not lost and kills == len(_KILLS_AT),
        ),
        Verdict(f"{jobs} jobs: failed", subject.name, "none", f"{ends['failed']}", not ends["failed"]),
        Verdict(f"{jobs} jobs: finished twice", subject.name, "none", f"{len(twice)}", not twice),
        Verdict(f"{jobs} jobs: the engine's memory", subject.name, "flat", remembered, flat or not begun),
    ]


def _run(on: Server, subject: Subject, count: int, memory: _Memory, deadline: float) -> tuple[list[_Job], int]:
    """(all jobs with the status that each ended with, how often the engine was killed)."""
    chance = random.Random(7)
    payloads = Prompts(subject.endless, 7).payloads(count, _MEAN_TOKENS)
    waiting, done, kills = list(payloads), list[_Job](), 0
    under_way: list[_Job] = []
    typical_s, answering = 1.0, False
    while (waiting or under_way) and time.monotonic() < deadline:
        if (free := min(_UNDER_WAY - len(under_way), len(waiting))) > 0:
            asked_at = time.monotonic()
            for handle in submit(on, [waiting.pop() for _ in range(free)]):
                # From at once, while it waits, to later than most jobs take.
                moment = chance.uniform(0, 1.3 * typical_s) if chance.random() < 1 / 3 else None
                under_way.append(_Job(handle, asked_at, moment))
        for job in under_way:
            if job.cancel_after_s is not None and time.monotonic() - job.asked_at >= job.cancel_after_s:
                job.cancel_after_s = None
                with contextlib.suppress(ImpetusError):
                    job.cancelled = job.handle.cancel()
        over = _over(on, under_way)
        if finished := [time.monotonic() - job.asked_at for job in over if job.status == "finished"]:
            typical_s = 0.8 * typical_s + 0.2 * median(finished)
        done += over
        under_way = [job for job in under_way if not job.status]
        if answering := answering or bool(finished):
            # Not while it loads: jobs may end by being cancelled then.
            memory.look(on, len(done) / count)
        if kills < len(_KILLS_AT) and len(done) >= _KILLS_AT[kills] * count and memory.engine:
            # Looked up anew: the worker may have started another since.
            engines = worker_processes(on)[1]
            with contextlib.suppress(ProcessLookupError):
                if engines:
                    os.kill(engines[0], signal.SIGKILL)
                    kills += 1
                    memory.engine, answering = 0, False
                    progress(f"{len(done)} of {count} jobs over, engine {engines[0]} killed")
        time.sleep(_LOOK_S)
    for job in under_way:
        job.status = job.handle.status()
    progress(f"{len(done)} of {count} jobs over")
    return done + under_way, kills


def _over(on: Server, under_way: list[_Job]) -> list[_Job]:
    """Those that have ended since the last look, their status set."""
    pipeline = on.connection.pipeline(transaction=False)
    for job in under_way:
        pipeline.hget(jobs.job_key(job.handle.job_id), "status")
    over = []
    for job, status in zip(under_way, pipeline.execute(), strict=True):
        word = "gone" if status is None else status.decode()
        if word in (*_OVER, "gone"):
            job.status = word
            over.append(job)
    return over


def _judged(on: Server, done: list[_Job]) -> tuple[list[_Job], list[_Job]]:
    """(the lost, those that finished twice), from what lies in Redis when all is over."""
    lost, twice = [], []
    for job in done:
        entries: Any = on.connection.xrange(jobs.results_key(job.handle.job_id))
        successes = sum(entry[b"type"] == _SUCCESS for _, entry in entries)
        status = job.handle.status()
        withdrawn = status in ("canceled", "stopped")
        if status not in _OVER or (withdrawn and not job.cancelled) or (status == "finished" and not successes):
            lost.append(job)
        if successes > 1 or (withdrawn and successes):
            twice.append(job)
    return lost, twice


def _growth(memory: _Memory) -> tuple[float, float]:
    """(bytes at a quarter of the jobs, at the end) of the last engine, as medians of looks; zeros for no looks."""
    late = [(pid, held) for pid, samples in memory.samples.items() for share, held in samples if share >= _MEMORY_FROM]
    if not late:
        return 0.0, 0.0
    last = late[-1][0]
    held = [each for pid, each in late if pid == last]
    part = max(1, len(held) // 8)
    return median(held[:part]), median(held[-part:])
