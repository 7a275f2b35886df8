"""The embedded server: who keeps it, who reaches it, and what its folder outlives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from impetus_producer.servers.discovery import ServerNote
from impetus_worker.errors import ConfigurationError
from impetus_worker.host.embedded_server import EmbeddedServer, url_file
from impetus_worker.host.restarts import Patience
from impetus_worker.host.supervisor import STOP_SIGNALS, Supervisor
from impetus_worker.settings import WorkerSettings
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.system


# -- the folder ------------------------------------------------------------------------------------------------------


def test_its_folder_may_have_spaces_in_its_name_and_its_data_survive_a_restart(folder: Path) -> None:
    for expected in (None, b"kept"):
        server = EmbeddedServer.start_or_join(folder)
        url = server.url
        with Redis.from_url(url) as connection:
            assert connection.get("x") == expected
            connection.set("x", "kept")
        server.stop()
    assert ServerNote.read(folder) is None


def test_one_whose_socket_somebody_removed_ends_in_order_and_is_reached_once_it_is_started_again(folder: Path) -> None:
    server = EmbeddedServer.start_or_join(folder)
    url = server.url
    with Redis.from_url(url) as connection:
        connection.set("x", "kept")
    Path(unquote(urlsplit(url).path)).unlink()
    eventually(lambda: not server.look_after())
    server.start()
    with Redis.from_url(url) as connection:
        assert connection.get("x") == b"kept"
    server.stop()


def test_a_second_program_joins_the_server_and_leaves_it_running(folder: Path) -> None:
    server = EmbeddedServer.start_or_join(folder)
    url = server.url
    joined = EmbeddedServer.start_or_join(folder)
    assert joined.url == url
    assert not joined.is_ours
    joined.stop()
    with Redis.from_url(url) as connection:
        assert connection.ping()
    server.stop()


def test_who_joined_keeps_the_server_once_the_program_that_kept_it_has_ended(folder: Path) -> None:
    keeper = EmbeddedServer.start_or_join(folder)
    joined = EmbeddedServer.start_or_join(folder)
    with Redis.from_url(keeper.url) as connection:
        connection.set("x", "kept")
    assert joined.look_after()
    keeper.stop()
    assert not joined.look_after()
    joined.start()
    assert joined.look_after()
    assert joined.is_ours
    assert (joined.url, ServerNote.read(folder)) == (keeper.url, ServerNote(keeper.url, os.getpid()))
    with Redis.from_url(joined.url) as connection:
        assert connection.get("x") == b"kept"
    joined.stop()


@pytest.mark.parametrize("ended", [EmbeddedServer.stop, EmbeddedServer._release_lock], ids=["in order", "killed"])
def test_who_comes_to_keep_the_server_keeps_it_as_it_was_whatever_it_was_told_itself(
    folder: Path, ended: Callable[[EmbeddedServer], None]
) -> None:
    keeper = EmbeddedServer.start_or_join(folder, durable=True, listen="127.0.0.1:0")
    elsewhere = keeper.listens_at
    joined = EmbeddedServer.start_or_join(folder)
    ended(keeper)
    keeper._end_guard()
    assert not joined.look_after()
    joined.start()
    assert (joined.url, joined.listens_at, url_file(folder).read_text()) == (keeper.url, elsewhere, elsewhere)
    with Redis.from_url(elsewhere) as connection:
        assert list(connection.config_get("appendfsync").values()) == ["always"]
    told_otherwise = EmbeddedServer.start_or_join(folder, listen="127.0.0.1:1")
    joined.stop()
    assert not told_otherwise.look_after()
    told_otherwise.start()
    assert told_otherwise.listens_at == elsewhere
    told_otherwise.stop()


def test_where_a_server_is_can_be_found_again_after_somebody_removed_what_said_so(folder: Path) -> None:
    server = EmbeddedServer.start_or_join(folder, listen="127.0.0.1:0")
    for file in (ServerNote.path(folder), url_file(folder)):
        said = file.read_text()
        file.unlink()
        assert server.look_after()
        assert file.read_text() == said
    server.stop()


def test_a_note_of_a_dead_keeper_whose_number_lives_again_is_not_believed(folder: Path) -> None:
    folder.mkdir(parents=True)
    ServerNote("redis://127.0.0.1:1/0", os.getpid()).write(folder)
    server = EmbeddedServer.start_or_join(folder)
    url = server.url
    assert url != "redis://127.0.0.1:1/0"
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, and /proc, which shows how it was told")
def test_its_allocator_keeps_more_at_hand_unless_somebody_says_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for told, wanted in ((None, "glibc.malloc.tcache_count=2048"), ("glibc.malloc.check=0",) * 2):
        if told:
            monkeypatch.setenv("GLIBC_TUNABLES", told)
        server = EmbeddedServer.start_or_join(folder)
        url = server.url
        with Redis.from_url(url) as connection:
            about: Any = connection.info("server")
        environment = Path(f"/proc/{about['process_id']}/environ").read_bytes().split(b"\0")
        server.stop()
        assert f"GLIBC_TUNABLES={wanted}".encode() in environment


# -- who reaches it --------------------------------------------------------------------------------------------------


def others_may(path: Path) -> int:
    return path.stat().st_mode & 0o077


def test_only_its_user_reaches_it_and_reads_what_it_keeps(folder: Path) -> None:
    (folder / "valkey").mkdir(parents=True, mode=0o755)  # as an older release left it
    folder.chmod(0o755)
    server = EmbeddedServer.start_or_join(folder)
    url = server.url
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
    server = EmbeddedServer.start_or_join(folder)
    url = server.url
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
    server = EmbeddedServer.start_or_join(folder)
    server.stop()


def test_a_folder_that_cannot_be_used_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*IMPETUS_STATE_DIR"):
        EmbeddedServer.start_or_join(tmp_path / "file" / "folder")


def test_a_server_that_dies_again_and_again_is_started_again_however_often_and_its_log_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Dying(EmbeddedServer):
        starts = 0

        def start(self, **wanted: Any) -> None:
            self.starts += 1
            if self.starts == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            raise ConfigurationError("the disk is full")

        def look_after(self) -> bool:
            return False

    server = Dying(tmp_path)
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGCHLD)}
    try:
        status = Supervisor(
            [WorkerSettings((), "embedding", "idle")],
            server,
            patience=Patience(most_in_a_row=4, longest_pause_s=0.0),
            command=[sys.executable, "-c", "input()\ninput()"],
        ).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (status, server.starts) == (0, 20)
    assert Patience(most_in_a_row=10**9).pause_s(10**6) == 30.0
    assert re.search(r"the disk is full; its own log is .*valkey.log; starting it again", caplog.text)


@pytest.mark.parametrize(("durable", "promise"), [(False, "everysec"), (True, "always")])
def test_durable_means_that_every_change_is_on_the_disk_before_it_is_acknowledged(
    folder: Path, durable: bool, promise: str
) -> None:
    server = EmbeddedServer.start_or_join(folder, durable=durable)
    url = server.url
    with Redis.from_url(url) as connection:
        settings: Any = connection.config_get("append*")
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", promise)
    server.stop()


def test_a_process_that_took_over_the_servers_number_is_left_alone(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        (folder / "valkey").mkdir(parents=True)
        (folder / "valkey" / "valkey.pid").write_text(f"{innocent.pid}\n")
        server = EmbeddedServer.start_or_join(folder)
        server.stop()
        assert innocent.poll() is None
        innocent.kill()
