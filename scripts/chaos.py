"""Breaks everything at random while jobs flow, then lets the backlog drain and counts.

A server of its own (append-only file, synced at every write), supervisors with workers on the simulated backends, and
a producer that never stops. Under the seed: processes are killed (workers, engines, supervisors, the server) or frozen
past their lease, connections are cut, the server runs out of memory, and some texts crash the engine or hang it.

At the end every job that was accepted must have ended exactly once: finished with the right number of vectors, or
failed for a reason that is its own. The last line of output is one JSON object; the exit status is 0 only if all holds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError
from scripts.traffic import Traffic
from tests.worker.account import HANG, POISON, Account, is_quiet, take_account
from tests.worker.breakable import Server, Workers, await_true, is_ours, resident_mb, signal_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_DRAIN_LIMIT_S = 150
"""The longest that the backlog may take when the faults are over: restarts back off up to 30 s, leases take theirs."""
_MAX_GROWTH_MB = 60
FAULTS = {
    "worker killed": 3,
    "engine killed": 3,
    "supervisor killed": 1,
    "worker frozen past its lease": 2,
    "server killed": 1,
    "connections cut": 3,
    "server out of memory": 1,
    "poison": 1,
    "hang": 1,
}
"""And how often each strikes, against the others."""


@dataclass(order=True)
class _Due:
    at: float
    number: int
    action: Callable[[], None] = field(compare=False)


class Chaos:
    """One run. `start`, `run` and `end`, in this order; `end` also when something raised."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._options = options
        self._random = random.Random(options.seed)
        self._server = Server(folder / "server")
        self._traffic = Traffic(self._server.url, options.jobs_per_s, options.seed + 1)
        self._supervisors: list[Workers] = []
        self._due: list[_Due] = []
        self._frozen: set[int] = set()
        self._pids: set[int] = set()
        self._memory: dict[int, list[float]] = {}
        self._server_down = False
        self._short_of_memory = False
        self.faults: Counter[str] = Counter()

    def _strikes(self, name: str) -> bool:
        """Whether there was something to break."""
        match name:
            case "worker killed":
                return self._strike("worker_pids", signal.SIGKILL)
            case "engine killed":
                return self._strike("engine_pids", signal.SIGKILL)
            case "supervisor killed":
                return self._kill_supervisor()
            case "worker frozen past its lease":
                return self._freeze()
            case "server killed":
                return self._kill_server()
            case "connections cut":
                return self._cut_connections()
            case "server out of memory":
                return self._starve()
            case other:
                return self._send({"poison": POISON, "hang": HANG}[other])

    def start(self) -> None:
        self._server.start()
        for number in range(self._options.supervisors):
            self._supervise(number)
        self._traffic.start()

    def _supervise(self, number: int) -> None:
        workers = Workers(
            self._server.url,
            self._folder / f"workers-{number}.log",
            lease_s=self._options.lease_s,
            max_batch_texts=64,
            simulated_a_ms=5.0,
        )
        if number < len(self._supervisors):
            self._supervisors[number] = workers
        else:
            self._supervisors.append(workers)

    def run(self) -> Account:
        started = time.monotonic()
        self._later(1.0, self._look)
        plan = deque(self._plan())
        while (now := time.monotonic()) < started + self._options.seconds:
            if self._due and self._due[0].at <= now:
                heapq.heappop(self._due).action()
            elif plan and now - started >= plan[0][0]:
                self._break_something(*plan.popleft())
            else:
                time.sleep(0.02)
        self._traffic.stop()
        say("the faults are over; the backlog drains")
        while self._due:
            heapq.heappop(self._due).action()
        drained_from = time.monotonic()
        connection = Redis.from_url(self._server.url)
        quiet = await_true(lambda: self._is_settled(connection), _DRAIN_LIMIT_S)
        self.drain_s = time.monotonic() - drained_from
        account = take_account(connection, self._traffic.acknowledged)
        if not quiet:
            account.wrong("it did not drain", f"within {_DRAIN_LIMIT_S} s")
        self._look()
        self._check_memory(account)
        self._stop_workers(connection, account)
        return account

    def _is_settled(self, connection: Redis) -> bool:
        """Quiet, and the books closed: what a lost answer left there goes with its lease."""
        time.sleep(0.2)
        return is_quiet(connection) and not any(connection.scan_iter("rq:execution*", count=1000))

    def _stop_workers(self, connection: Redis, account: Account) -> None:
        self._note_pids()
        for supervisor in self._supervisors:
            if status := supervisor.stop():
                account.wrong("a supervisor did not stop well", f"exit status {status}")
        self._supervisors = []
        if not await_true(lambda: not any(map(is_ours, self._pids)), 15):
            account.wrong("processes left behind", [pid for pid in self._pids if is_ours(pid)])
        keys: Any = connection.smembers("rq:workers")
        for key in map(bytes.decode, keys):
            if connection.ttl(key) == -1:
                account.wrong("a worker that is gone is in rq's books for ever", key)

    def end(self) -> None:
        """Leaves nothing running."""
        self._note_pids()
        for supervisor in self._supervisors:
            supervisor.kill()
        for pid in self._pids:
            signal_to(pid, signal.SIGKILL)
        self._server.kill()

    def report(self) -> dict[str, Any]:
        return {
            "faults": dict(sorted(self.faults.items())),
            "refused": dict(self._traffic.refused),
            "acknowledged": len(self._traffic.acknowledged),
            "drain_s": round(getattr(self, "drain_s", -1), 1),
            "memory_mb": {
                "first": round(max((seen[0] for seen in self._memory.values()), default=0), 1),
                "last": round(max((seen[-1] for seen in self._memory.values()), default=0), 1),
            },
        }

    # -- faults ------------------------------------------------------------------------------------------------------

    def _plan(self) -> Iterator[tuple[float, str, int]]:
        """When which kind of fault strikes, and a seed for whom: the seed's alone, whatever happens meanwhile."""
        draw = random.Random(self._options.seed)
        kinds = {name: weight for name, weight in FAULTS.items() if name in (self._options.only or [name])}
        at_s = 3.0
        while at_s < self._options.seconds:
            yield at_s, draw.choices(list(kinds), list(kinds.values()))[0], draw.getrandbits(32)
            at_s += self._options.fault_every_s * draw.uniform(0.3, 1.7)

    def _break_something(self, at_s: float, name: str, seed: int) -> None:
        self._random.seed(seed)
        self._note_pids()
        if self._strikes(name):
            self.faults[name] += 1
            say(f"{at_s:6.1f} s  {name}")

    def _later(self, in_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, _Due(time.monotonic() + in_s, len(self._due) + self._random.getrandbits(30), action))

    def _strike(self, which: str, number: int) -> bool:
        pids = [pid for supervisor in self._supervisors for pid in getattr(supervisor, which)()]
        return bool(pids) and signal_to(self._random.choice(pids), number)

    def _kill_supervisor(self) -> bool:
        number = self._random.randrange(len(self._supervisors))
        if self._supervisors[number].process.poll() is not None:
            return False
        self._supervisors[number].kill()
        self._later(self._random.uniform(0, 2), lambda: self._supervise(number))
        return True

    def _freeze(self) -> bool:
        pids = [pid for each in self._supervisors for pid in each.worker_pids() if pid not in self._frozen]
        if not pids:
            return False
        pid = self._random.choice(pids)
        self._frozen.add(pid)
        self._later(self._options.lease_s * self._random.uniform(1.1, 2), lambda: self._thaw(pid))
        return signal_to(pid, signal.SIGSTOP)

    def _thaw(self, pid: int) -> None:
        self._frozen.discard(pid)
        signal_to(pid, signal.SIGCONT)

    def _kill_server(self) -> bool:
        if self._server_down:
            return False
        self._server_down = True
        self._server.kill()
        self._later(self._random.uniform(0, 3), self._restart_server)
        return True

    def _restart_server(self) -> None:
        self._server.start()
        self._server_down = False

    def _cut_connections(self) -> bool:
        with suppress(RedisError), Redis.from_url(self._server.url) as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind)
            return True
        return False

    def _starve(self) -> bool:
        if self._short_of_memory:
            return False
        with suppress(RedisError), Redis.from_url(self._server.url) as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1mb")
            self._short_of_memory = True
            self._later(self._options.lease_s * self._random.uniform(0.2, 1.5), self._feed)
            return True
        return False

    def _feed(self) -> None:
        try:
            with Redis.from_url(self._server.url) as client:
                client.config_set("maxmemory", "0")
                self._short_of_memory = False
        except RedisError:
            self._later(0.3, self._feed)

    def _send(self, text: str) -> bool:
        self._traffic.special.append(text)
        return True

    # -- looking -----------------------------------------------------------------------------------------------------

    def _note_pids(self) -> None:
        for supervisor in self._supervisors:
            self._pids.update(supervisor.worker_pids())
            self._pids.update(supervisor.engine_pids())

    def _look(self) -> None:
        for supervisor in self._supervisors:
            for pid in supervisor.worker_pids():
                if (size := resident_mb(pid)) is not None:
                    self._memory.setdefault(pid, []).append(size)
        if not self._traffic._stopped.is_set():
            self._later(5.0, self._look)

    def _check_memory(self, account: Account) -> None:
        """Flat once warm: the second sample is some seconds into its life."""
        for pid, seen in self._memory.items():
            if len(seen) > 3 and seen[-1] - seen[1] > _MAX_GROWTH_MB:
                account.wrong("a worker grew", f"{pid}: {' '.join(f'{size:.0f}' for size in seen)} MB")


def say(sentence: str) -> None:
    print(sentence, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long things break (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="the same seed plans the same faults (default: any)")
    parser.add_argument("--jobs-per-s", type=float, default=40, help="how many jobs come in (default: 40)")
    parser.add_argument("--fault-every-s", type=float, default=1.5, help="how often, on average (default: 1.5)")
    parser.add_argument("--supervisors", type=int, default=2, help="machines, so to speak (default: 2)")
    parser.add_argument("--lease-s", type=int, default=5, help="how long a job is a silent worker's (default: 5)")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(FAULTS),
        metavar="FAULT",
        help="only this kind of fault, as the log names it",
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs, and say where they are")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    say(f"seed {options.seed}")
    folder = Path(tempfile.mkdtemp(prefix="impetus-chaos-"))
    chaos = Chaos(folder, options)
    account, interrupted = Account(), False
    try:
        chaos.start()
        account = chaos.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # A second Ctrl-C must not keep this from being done.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        chaos.end()
    crashes = Counter(
        line.strip()
        for log in folder.glob("workers-*.log")
        for line in last_lines_of_tracebacks(log.read_text(errors="replace"))
    )
    if options.keep:
        say(f"logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if interrupted:
        print("stopped; nothing is left running", file=sys.stderr)
        return 130
    for line, count in crashes.items():
        account.wrong("a traceback in the workers' log", f"{count} x {line}")
    say(str(account))
    say("all holds" if not account.problems else "NOT as promised")
    summary = {"seed": options.seed, "holds": not account.problems, **chaos.report(), **account.as_dict()}
    print(json.dumps(summary))
    return 1 if account.problems else 0


def last_lines_of_tracebacks(log: str) -> list[str]:
    """Where a program died of an exception that nobody foresaw, what it was."""
    found, inside = [], False
    for line in log.splitlines():
        if line.startswith("Traceback "):
            inside = True
        elif inside and not line.startswith((" ", "\t")) and line.strip():
            found.append(line[:200])
            inside = False
    return found


if __name__ == "__main__":
    sys.exit(main())
