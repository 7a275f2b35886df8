"""What the supervisor makes of how its workers end: small programs play the workers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from impetus_worker.host.restarts import Patience
from impetus_worker.host.supervisor import EXIT_CONFIGURATION, EXIT_SHUTDOWN
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

LIMIT_S = 100.0
"""For a machine that has other things to do."""

_SUPERVISE = """
import json, logging, sys
from impetus_worker.host.supervisor import Supervisor
from impetus_worker.host.restarts import Patience
from impetus_worker.settings import WorkerSettings
logging.basicConfig(level=logging.INFO)
told = json.loads(sys.argv[1])
workers = [
    WorkerSettings(redis_urls=(), role=role, name=f"first-{role}", burst=told["burst"]) for role in told["roles"]
]
def on_death(name, begun):
    print(json.dumps({"died": name, "begun": list(begun)}), flush=True)
supervisor = Supervisor(
    workers, on_death=on_death, patience=Patience(**told["patience"]), command=[sys.executable, "-c", told["worker"]]
)
sys.exit(supervisor.run())
"""

_WORKER = """
import os, signal, sys, time
from impetus_worker.host.begun import BegunNote
from impetus_worker.settings import WorkerSettings
settings = WorkerSettings.from_json(sys.stdin.readline())
note = BegunNote.open(settings.begun_fd)
def say(word):
    line = '{"worker": "%s", "word": "%s", "pid": %d}' % (settings.name, word, os.getpid())
    os.write(1, line.encode() + b"\\n")  # at once: a signal may come in the middle, and say something too
first = settings.name.startswith("first")
"""
"""The beginning of every worker below."""
_IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
_SERVES = """
said = []
def hear(number, frame):
    said.append(signal.Signals(number).name)
    say("+".join(said))
    if len(said) == 2:
        sys.exit(0)
signal.signal(signal.SIGTERM, hear)
signal.signal(signal.SIGINT, hear)
say("serves")
while True:
    signal.pause()
"""

_OBEYS = """
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: sys.exit(0))
say("serves")
while True:
    signal.pause()
"""


class Supervised:
    """A supervisor in a process of its own, over workers that run `source`."""

    def __init__(self, folder: Path, source: str, *, roles: tuple[str, ...], burst: bool, **patience: float) -> None:
        self._out = folder / "out"
        self._log = folder / "log"
        told = {"roles": roles, "burst": burst, "worker": source, "patience": patience}
        with open(self._out, "wb") as out, open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SUPERVISE, json.dumps(told)], stdin=subprocess.DEVNULL, stdout=out, stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def has_logged(self, words: str) -> bool:
        return words in self.log

    def said(self, word: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._out.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line.get("word", "") == word]

    def deaths(self) -> list[tuple[str, list[str]]]:
        return [(line["died"], line["begun"]) for line in self.said() if "died" in line]

    def heard(self, word: str, times: int = 1) -> list[dict[str, Any]]:
        return eventually(lambda: lines if len(lines := self.said(word)) >= times else [], LIMIT_S)

    def status(self) -> int:
        return self.process.wait(LIMIT_S)


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Any]:
    running: list[Supervised] = []

    def start(source: str, *, roles: tuple[str, ...] = ("embedding",), burst: bool = False, **patience: Any) -> Any:
        running.append(Supervised(tmp_path, _WORKER + source, roles=roles, burst=burst, **patience))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()  # the workers' standard input closes, and with what they print nobody is left
        each.process.wait()
        for line in each.said("serves") + each.said("deaf"):
            try:
                os.kill(line["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue


_LEAVES_A_FROZEN_CHILD = """
if first:
    import subprocess
    held = os.open({!r}, os.O_RDWR)
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], pass_fds=[held])
    os.kill(child.pid, signal.SIGSTOP)
    os.write(1, b'{{"worker": "", "word": "deaf", "pid": %d}}\\n' % child.pid)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_worker_that_died_had_started_ends_with_it_even_when_it_is_frozen(
    supervise: Any, tmp_path: Path
) -> None:
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    one = supervise(_LEAVES_A_FROZEN_CHILD.format(str(fifo)) + _SERVES)
    one.heard("serves")
    heard = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def is_held_by_nobody() -> bool:
        try:
            return os.read(heard, 1) == b""
        except BlockingIOError:
            return False

    eventually(is_held_by_nobody)
    os.close(heard)


# -- what is a death -------------------------------------------------------------------------------------------------


def test_a_worker_killed_by_anybody_is_reported_once_with_what_had_begun_in_its_engine(supervise: Any) -> None:
    two = supervise(
        "if first: note.write(['a', 'b']); note.write(['b', 'c']); os.kill(os.getpid(), signal.SIGKILL)\n" + _SERVES
    )
    (second,) = two.heard("serves")
    assert second["worker"] != "first-embedding"
    two.process.send_signal(signal.SIGTERM)
    two.heard("SIGTERM")
    two.process.send_signal(signal.SIGTERM)
    assert two.status() == 0
    assert two.deaths() == [("first-embedding", ["b", "c"])]


@pytest.mark.parametrize("status", [1, 7])
def test_a_worker_that_ends_by_an_error_is_reported_and_started_again(supervise: Any, status: int) -> None:
    one = supervise(f"if first: note.write(['a']); os._exit({status})\n" + _SERVES)
    one.heard("serves")
    assert one.deaths() == [("first-embedding", ["a"])]


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (EXIT_CONFIGURATION, EXIT_CONFIGURATION)])
def test_a_worker_that_ends_in_order_is_no_death(supervise: Any, status: int, expected: int) -> None:
    one = supervise(f"note.write(['a']); sys.exit({status})", burst=True)
    assert one.status() == expected
    assert one.deaths() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_others_stopped_by_a_signal_is_followed_by_another(
    supervise: Any, number: signal.Signals
) -> None:
    one = supervise(_OBEYS, after_shutdown_s=0.1)
    (line,) = one.heard("serves")
    os.kill(line["pid"], number)
    second = one.heard("serves", times=2)[1]
    assert second["worker"] != line["worker"]
    assert one.deaths() == []
    one.process.send_signal(signal.SIGTERM)
    assert one.status() == 0


def test_a_worker_that_the_supervisor_killed_blames_no_job(supervise: Any) -> None:
    one = supervise(_IGNORES + "note.write(['a']); say('deaf')\nwhile True: time.sleep(9)")
    one.heard("deaf")
    for passed_on in ("SIGTERM", "SIGINT", "SIGKILL"):
        one.process.send_signal(signal.SIGTERM)
        eventually(partial(one.has_logged, f"({passed_on})"))
    assert one.status() == 0
    assert one.deaths() == [("first-embedding", [])]


def test_a_worker_killed_by_others_while_it_is_being_stopped_is_a_death(supervise: Any) -> None:
    one = supervise("note.write(['a'])\n" + _SERVES)
    (line,) = one.heard("serves")
    one.process.send_signal(signal.SIGTERM)
    one.heard("SIGTERM")
    os.kill(line["pid"], signal.SIGKILL)
    assert one.status() == 1
    assert one.deaths() == [("first-embedding", ["a"])]


# -- being stopped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_supervisor_stopped_while_a_worker_starts_exits_0(supervise: Any, number: signal.Signals) -> None:
    # Its Python has installed no handlers yet: the signal ends it as the system ends any program.
    one = supervise("say('starts')\nwhile True: time.sleep(9)")
    one.heard("starts")
    one.process.send_signal(number)
    assert one.status() == 0
    assert one.deaths() == []
    assert "starting it again" not in one.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_second_stop_reaches_a_worker_that_has_not_yet_heard_the_first(
    supervise: Any, number: signal.Signals
) -> None:
    one = supervise(_SERVES)
    one.heard("serves")
    os.kill(one.process.pid, signal.SIGSTOP)
    one.process.send_signal(number)
    one.process.send_signal(signal.SIGTERM if number != signal.SIGTERM else signal.SIGINT)
    os.kill(one.process.pid, signal.SIGCONT)
    assert one.status() == 0
    assert len(one.said("SIGTERM+SIGINT") + one.said("SIGINT+SIGTERM")) == 1


def test_a_supervisor_under_nohup_does_not_mind_that_its_terminal_closes(tmp_path: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    told = {"roles": ["embedding"], "burst": False, "worker": _WORKER + _SERVES, "patience": {}}
    with subprocess.Popen(
        [sys.executable, "-c", ignoring + _SUPERVISE, json.dumps(told)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert b"serves" in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert b'"SIGTERM"' in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert b'"SIGTERM+SIGINT"' in process.stdout.readline()
        assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("status", [EXIT_SHUTDOWN, 0], ids=["command", "signal"])
def test_a_worker_that_obeyed_others_is_followed_by_another_and_how_to_stop_is_said(
    supervise: Any, status: int
) -> None:
    one = supervise(f"if first: sys.exit({status})\n" + _SERVES, after_shutdown_s=0.1)
    (line,) = one.heard("serves")
    assert line["worker"] != "first-embedding"
    assert one.deaths() == []
    assert "first-embedding was told to shut down by others" in one.log
    assert "to stop for good" in one.log


def test_in_burst_mode_a_shutdown_command_is_simply_the_end(supervise: Any) -> None:
    one = supervise(f"say('starts'); sys.exit({EXIT_SHUTDOWN})", burst=True)
    assert one.status() == 0
    assert len(one.said("starts")) == 1


@pytest.mark.parametrize("status", [EXIT_SHUTDOWN, 0], ids=["command", "signal"])
def test_stops_by_others_are_never_counted_as_failures(supervise: Any, status: int) -> None:
    one = supervise(f"say('starts'); sys.exit({status})", after_shutdown_s=0.0, most_in_a_row=2)
    one.heard("starts", times=4)
    assert one.process.poll() is None


# -- giving up -------------------------------------------------------------------------------------------------------


def test_a_bug_shows_by_its_traceback_and_a_bounded_number_of_restarts(supervise: Any) -> None:
    one = supervise("say('starts'); raise KeyError('a bug')", most_in_a_row=3, longest_pause_s=0.1)
    assert one.status() == 1
    assert len(one.said("starts")) == len(one.deaths()) == 3
    assert one.log.count("KeyError: 'a bug'") == 3
    assert "the embedding worker ended (exit status 1), 3 times in a row" in one.log
    assert one.log.count("given up") == 1


def test_a_worker_that_is_given_up_leaves_the_other_alone(supervise: Any) -> None:
    one = supervise(
        "if settings.role == 'embedding': os._exit(1)\n" + _SERVES, roles=("embedding", "generation"),
        most_in_a_row=2, longest_pause_s=0.1,
    )  # fmt: skip
    eventually(lambda: "given up" in one.log)
    one.heard("serves")
    one.process.send_signal(signal.SIGTERM)
    one.heard("SIGTERM")
    one.process.send_signal(signal.SIGTERM)
    assert one.status() == 1


def test_a_healthy_life_starts_the_count_anew() -> None:
    patience = Patience()
    assert [patience.pause_s(number) for number in range(1, 11)] == [0, 1, 2, 4, 8, 16, 30, 30, 30, math.inf]


def test_restarting_after_a_healthy_life_resets_the_count(supervise: Any) -> None:
    # With a limit of no time at all, every life was a healthy one.
    one = supervise("say('starts'); os._exit(1)", healthy_s=0.0, most_in_a_row=2)
    one.heard("starts", times=4)
    assert one.process.poll() is None
