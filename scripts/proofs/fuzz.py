"""Throws hostile jobs, records and keys at a real server with real workers, and ordinary jobs among them.

What must hold: no process of the workers ends, every ordinary job finishes, every hostile one ends, nothing that a job
names is executed, and nobody who waits for an answer waits for long. The engines are simulated: what reads and checks
requests is the same for all. The last line of output is one JSON object; the exit status is 0 only if all of it held.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.proofs.hostile import FUNCTIONS, GOOD, Hostile
from tests.patience import awaited
from tests.worker.faults.breakable import Server, Workers

from impetus_producer import Producer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

_AT_ONCE = 200
_ONE_GOOD_IN = 20
_ONE_RECORD_IN = 50
_MAX_WAITING = 4000
"""Jobs on the queues; more are not enqueued until some have ended."""
_MAX_WAIT_S = 2.0
_DRAIN_LIMIT_S = 120
# RQ logs one where a key of its own is of another type, and goes on.
_OUR_TRACEBACK = re.compile(r"^\S+ \S+ \w+ (?!rq\.)\S+ .*\n    Traceback", re.MULTILINE)
_ENDED = {b"finished", b"failed", b"stopped", b"canceled"}


class Fuzz:
    """One run."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._options = options
        self._random = random.Random(options.seed)
        self._canary = folder / "canary"
        self._hostile = Hostile(self._random, self._canary)
        self._server = Server(folder / "server", appendfsync="everysec")
        self._log = folder / "workers.log"
        self._producer: Any = None
        self._good: list[str] = []
        self._thrown: list[str] = []
        self._records = 0
        self._waits: list[float] = []
        self._stopped = threading.Event()

    def run(self) -> dict[str, Any]:
        self._server.start()
        workers = Workers(self._server.url, self._log, simulated_a_ms=0.5, simulated_b_us=0.1)
        try:
            with self._server.client() as connection:
                awaited(lambda: connection.scard("rq:workers") == len(FUNCTIONS), 60)
                before = set(workers.worker_pids())
                probe = threading.Thread(target=self._ask, daemon=True)
                probe.start()
                self._throw(connection)
                drained = self._drain(connection)
                self._stopped.set()
                probe.join(30)
                return self._report(connection, drained, set(workers.worker_pids()) == before)
        finally:
            workers.stop()
            self._server.kill()

    def _ask(self) -> None:
        """Somebody who wants one answer after the other."""
        producer = Producer(self._server.url)
        while not self._stopped.wait(0.05):
            since = time.monotonic()
            producer.embed("a text that somebody waits for").result(60)
            self._waits.append(time.monotonic() - since)
        producer.connection.close()

    def _throw(self, connection: Redis) -> None:
        deadline = time.monotonic() + self._options.seconds
        while len(self._thrown) < self._options.count and time.monotonic() < deadline:
            with connection.pipeline(transaction=False) as pipeline:
                for _ in range(_AT_ONCE):
                    self._throw_one(pipeline)
                pipeline.execute(raise_on_error=False)  # a key may be of another type by now, which is the point
            if sys.stderr.isatty():
                print(f"\r{len(self._thrown):,} thrown", end="", file=sys.stderr, flush=True)
            while self._waiting(connection) > _MAX_WAITING and time.monotonic() < deadline:
                time.sleep(0.02)
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _throw_one(self, pipeline: Any) -> None:
        number = len(self._thrown)
        role = self._random.choice(list(FUNCTIONS))
        queue = role + self._random.choice(["", "-bulk"])
        if number % _ONE_GOOD_IN == 0:
            good = f"good-{number}"
            call: list[Any] = [FUNCTIONS[role], None, [GOOD[role]], {}]
            self._enqueue(pipeline, queue, good, {"data": json.dumps(call).encode()})
            self._good.append(good)
        if number % _ONE_RECORD_IN == 0:
            self._records += 1
            for command in self._hostile.record(number):
                pipeline.execute_command(*command)
        job_id = f"bad-{number}"
        if self._random.random() < 0.1:
            for command in self._hostile.keys(job_id):
                pipeline.execute_command(*command)
        self._enqueue(pipeline, queue, job_id, self._hostile.fields(role))
        self._thrown.append(job_id)

    @staticmethod
    def _enqueue(pipeline: Any, queue: str, job_id: str, fields: dict[str, bytes]) -> None:
        needed = {"status": "queued", "origin": queue, "created_at": "2026-01-01T00:00:00.000000Z", "timeout": "60"}
        pipeline.hset(f"rq:job:{job_id}", mapping=needed | fields)
        pipeline.rpush(f"rq:queue:{queue}", job_id)

    def _waiting(self, connection: Redis) -> int:
        with connection.pipeline() as pipeline:  # of one moment: a job may go from one to the other
            for role in FUNCTIONS:
                for queue in (role, f"{role}-bulk"):
                    pipeline.llen(f"rq:queue:{queue}")
                    pipeline.zcard(f"rq:wip:{queue}")
            return sum(pipeline.execute())

    def _drain(self, connection: Redis) -> bool:
        deadline = time.monotonic() + _DRAIN_LIMIT_S
        while self._waiting(connection):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _report(self, connection: Redis, drained: bool, alive: bool) -> dict[str, Any]:
        good, bad = self._statuses(connection, self._good), self._statuses(connection, self._thrown)
        log = self._log.read_text(errors="replace")
        wrong: list[str] = []
        for what, is_wrong in (
            ("a worker ended", not alive or "was killed by" in log or "ended with exit status" in log),
            ("a traceback in the log", _OUR_TRACEBACK.search(log) is not None),
            ("a control character in the log", "\x1b" in log),
            ("something was executed", self._canary.exists()),
            ("the queues did not empty", not drained),
            ("an ordinary job did not finish", any(status != b"finished" for status in good)),
            # A job whose time to live a producer set may be gone, ended or not.
            ("a hostile job did not end", any(status not in _ENDED | {None} for status in bad)),
            (f"somebody waited longer than {_MAX_WAIT_S:.0f} s", max(self._waits, default=0.0) > _MAX_WAIT_S),
            ("nothing was thrown", not self._thrown or not self._waits),
        ):
            if is_wrong:
                wrong.append(what)
        return {
            "seed": self._options.seed,
            "holds": not wrong,
            "wrong": wrong,
            "hostile_jobs": len(self._thrown),
            "hostile_records": self._records,
            "of_them_finished": sum(status == b"finished" for status in bad),
            "not_ended": [
                name for name, status in zip(self._thrown, bad, strict=True) if status not in _ENDED | {None}
            ][:5],
            "ordinary_jobs": len(good),
            "of_them_unfinished": sum(status != b"finished" for status in good),
            "longest_wait_s": round(max(self._waits, default=0.0), 3),
            "waits": len(self._waits),
        }

    @staticmethod
    def _statuses(connection: Redis, job_ids: Sequence[str]) -> list[bytes | None]:
        with connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(f"rq:job:{job_id}", "status")
            return pipeline.execute()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="the same seed makes the same jobs (default: any)")
    parser.add_argument("--seconds", type=float, default=60, help="for how long at most (default: 60)")
    parser.add_argument("--count", type=int, default=100_000, help="how many jobs at most (default: 100000)")
    parser.add_argument("--keep", action="store_true", help="keep the log, and say where it is")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="impetus-fuzz-"))
    try:
        report = Fuzz(folder, options).run()
    finally:
        if options.keep:
            print(f"the log is in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("all holds" if report["holds"] else f"NOT as promised: {', '.join(report['wrong'])}")
    print(json.dumps(report))
    return 0 if report["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
