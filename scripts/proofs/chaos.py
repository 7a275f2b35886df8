"""Breaks everything at random while jobs flow, then lets the backlog drain and gives its verdict.

Two servers (append-only files, synced at every write) of which one serves; machines with workers on the simulated
backends, each behind a network of its own; a producer that never stops. Under the seed, faults strike: `--list-faults`
says which. Asynchronous replication may lose the last writes in a failover that nobody planned; here servers are
exchanged once the second has everything, so that what is lost is the workers' loss.

The verdict is on the whole history: lost, duplicated, unexpected, recovered (Jepsen's sets), and innocents failed.
Every vector and every text is compared with what it must be. The last line of output is one JSON object; the exit
status is 0 only if every promise held.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from scripts.proofs.faults.catalogue import FAULTS
from scripts.proofs.faults.history import History
from scripts.proofs.faults.observers import Probe, StreamReader, Wait
from scripts.proofs.faults.scene import OBSERVER, PRODUCER, Scene
from scripts.proofs.faults.verdict import excuse_evicted, tracebacks
from scripts.proofs.traffic import Traffic
from tests.patience import awaited
from tests.worker.faults.account import Account, have_ended, is_quiet, take_account

from impetus_worker.settings import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DRAIN_LIMIT_S = 150
"""The longest that the backlog may take when the faults are over: restarts back off up to 30 s, leases take theirs."""
_QUIET_S = 15.0
"""For so long a job may be in no registry: what RQ does with dependents is more than one step."""
_MAX_GROWTH_MB = 60
_LOOK_EVERY_S = 5.0
_FIRST_FAULT_AT_S = 1.0
_START_LIMIT_S = 90.0


class Chaos:
    """One run. `start`, `run` and `end`, in this order; `end` also when something raised."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._options = options
        self._faults = [FAULTS[name] for name in options.fault] or [each for each in FAULTS.values() if each.weight]
        self._random = random.Random(options.seed)
        self._history = History()
        self._scene = Scene(folder, self._random, self._history, machines=options.machines, lease_s=options.lease_s)
        self._scene.alone = len(self._faults) == 1
        self._streams = StreamReader()
        self._traffic = Traffic(
            self._scene.networks[PRODUCER].url, self._history, options.jobs_per_s, options.seed + 1, self._streams.take
        )
        self._probes = [
            Probe(self._scene.networks[OBSERVER].url, self._history, kind, options.seed)
            for kind in ("embedding", "generation")
        ]
        self._struck: Counter[str] = Counter()
        self._drain_s = -1.0
        self._quiet_since: float | None = None

    def start(self) -> None:
        """Returns when the workers serve: how long that takes is the machine's matter."""
        self._scene.start(self._traffic)
        with Redis.from_url(self._scene.networks[OBSERVER].url) as connection:
            if not awaited(
                lambda: connection.scard("rq:workers") >= len(ROLES) * self._options.machines, _START_LIMIT_S
            ):
                raise SystemExit(f"the workers did not start within {_START_LIMIT_S:g} s: see {self._folder}")
        self._traffic.start()
        self._streams.start()
        for probe in self._probes:
            probe.start()

    def run(self) -> Account:
        scene, started = self._scene, time.monotonic()
        scene.later(1.0, self._look)
        plan = deque(self._plan())
        # On a busy machine faults strike late, but what is planned strikes.
        while (passed_s := time.monotonic() - started) < self._options.seconds or plan:
            if scene.run_due():
                continue
            if plan and passed_s >= plan[0][0]:
                self._strike(*plan.popleft())
            else:
                time.sleep(0.02)
        scene.settle()
        for probe in self._probes:
            probe.stop()
        say("the faults are over; the backlog drains")
        if not self._traffic.stop():
            scene.complain("a producer can enqueue nothing any more", str(dict(self._traffic.refused)))
        return self._judge()

    def _judge(self) -> Account:
        scene, drained_from = self._scene, time.monotonic()
        connection = Redis.from_url(scene.networks[OBSERVER].url)
        quiet = awaited(lambda: self._is_quiet(connection), _DRAIN_LIMIT_S)
        self._drain_s = time.monotonic() - drained_from
        for probe in self._probes:
            probe.end()
        self._streams.end()
        # One of these may have waited for the server with a job in hand, and enqueued it just now.
        quiet = quiet and awaited(lambda: self._is_quiet(connection), _DRAIN_LIMIT_S)
        history = self._history
        account = take_account(
            connection,
            history.acknowledged,
            attempted=history.attempted,
            vanishing=history.vanishing,
            some_discarded=bool(scene.evicted),
        )
        if not quiet:
            account.wrong("it did not drain", f"within {_DRAIN_LIMIT_S} s")
        if not history.acknowledged or not account.finished:
            account.wrong("nothing was accepted, or nothing finished", len(history.acknowledged))
        for job in self._streams.wrong:
            account.wrong("unexpected: a stream that is not its text", job)
        self._judge_waits(account)
        self._judge_memory(account)
        excuse_evicted(account, scene.evicted)
        scene.stop_machines()
        for what, which in scene.complaints:
            account.wrong(what, which)
        keys: Any = connection.smembers("rq:workers")
        for key in map(bytes.decode, keys):
            if connection.ttl(key) == -1:
                account.wrong("a worker that is gone is in rq's books for ever", key)
        return account

    def _is_quiet(self, connection: Redis) -> bool:
        """Nothing waits or runs, and all have ended; or they have not, and still nothing waits or runs."""
        time.sleep(0.2)
        if not is_quiet(connection):
            self._quiet_since = None
            return False
        self._quiet_since = self._quiet_since or time.monotonic()
        ended = have_ended(connection, set(self._history.acknowledged) - self._history.vanishing)
        return ended or time.monotonic() - self._quiet_since > _QUIET_S

    def end(self) -> None:
        """Leaves nothing running."""
        self._scene.end()

    # -- faults ------------------------------------------------------------------------------------------------------

    def _plan(self) -> Iterator[tuple[float, str, int]]:
        """When which kind of fault strikes, and a seed for whom: the seed's alone, whatever happens meanwhile."""
        draw = random.Random(self._options.seed)
        names, weights = [fault.name for fault in self._faults], [fault.weight or 1 for fault in self._faults]
        at_s = _FIRST_FAULT_AT_S
        while at_s < self._options.seconds:
            yield at_s, draw.choices(names, weights)[0], draw.getrandbits(32)
            at_s += self._options.fault_every_s * draw.uniform(0.3, 1.7)

    def _strike(self, at_s: float, name: str, seed: int) -> None:
        self._random.seed(seed)
        self._scene.note_processes()
        if FAULTS[name].strike(self._scene):
            self._struck[name] += 1
            say(f"{at_s:6.1f} s  {name}")

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._scene.note_memory()
        if not self._scene.over:
            self._scene.later(_LOOK_EVERY_S, self._look)

    def _judge_memory(self, account: Account) -> None:
        """Flat once warm: the second sample is some seconds into its life."""
        for pid, seen in self._scene.memory_mb.items():
            if len(seen) > 3 and seen[-1] - seen[1] > _MAX_GROWTH_MB:
                account.wrong("a worker or an engine grew", f"{pid}: {' '.join(f'{size:.0f}' for size in seen)} MB")

    def _judge_waits(self, account: Account) -> None:
        limit_s = self._options.max_wait_s
        if limit_s is not None and (longest := _longest(self._calm_waits())) > limit_s:
            account.wrong("an interactive job waited too long", f"{longest:.2f} s")

    def _waits(self) -> list[Wait]:
        return [wait for probe in self._probes for wait in probe.waits]

    def _calm_waits(self) -> list[Wait]:
        return [wait for wait in self._waits() if not wait.is_during(self._scene.server_spells)]

    def report(self) -> dict[str, Any]:
        memory_mb = self._scene.memory_mb.values()
        return {
            "faults": dict(sorted(self._struck.items())),
            "refused": dict(self._traffic.refused),
            "acknowledged": len(self._history.acknowledged),
            "streams_read": self._streams.read,
            "drain_s": round(self._drain_s, 1),
            "interactive_wait_s": _summary(self._waits()),
            "interactive_wait_beside_server_faults_s": _summary(self._calm_waits()),
            "memory_mb": {
                "first": round(max((seen[0] for seen in memory_mb), default=0), 1),
                "last": round(max((seen[-1] for seen in memory_mb), default=0), 1),
            },
        }


def _longest(waits: list[Wait]) -> float:
    return max((wait.seconds for wait in waits), default=0.0)


def _summary(waits: list[Wait]) -> dict[str, float]:
    seconds = sorted(wait.seconds for wait in waits)
    if not seconds:
        return {"count": 0}
    middle, high = seconds[len(seconds) // 2], seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
    return {"count": len(seconds), "p50": round(middle, 3), "p99": round(high, 3), "max": round(seconds[-1], 3)}


def say(sentence: str) -> None:
    print(sentence, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="how long things break (default: 30)")
    parser.add_argument("--seed", type=int, default=None, help="the same seed plans the same faults (default: any)")
    parser.add_argument("--jobs-per-s", type=float, default=40, help="how many jobs come in (default: 40)")
    parser.add_argument("--fault-every-s", type=float, default=1.5, help="how often, on average (default: 1.5)")
    parser.add_argument("--machines", type=int, default=2, help="supervisors with their workers (default: 2)")
    parser.add_argument("--lease-s", type=int, default=5, help="how long a job is a silent worker's (default: 5)")
    parser.add_argument(
        *("--fault", "--only"),
        action="append",
        default=[],
        choices=list(FAULTS),
        metavar="NAME",
        help="only this kind of fault, or these (default: all that do not have to be named)",
    )
    parser.add_argument("--list-faults", action="store_true", help="say which faults there are, and stop")
    parser.add_argument(
        "--max-wait-s", type=float, help="fail if an interactive job waited longer while the server itself was whole"
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs, and say where they are")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.list_faults:
        for fault in FAULTS.values():
            say(f"{fault.name:22}{fault.says}{'' if fault.weight else ' (only by name)'}")
        return 0
    # Producers say that they wait for the server, which is broken all the time.
    logging.getLogger("impetus_producer").setLevel(logging.ERROR)
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
        line.strip() for log in folder.glob("machine-*.log") for line in tracebacks(log.read_text(errors="replace"))
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


if __name__ == "__main__":
    sys.exit(main())
