"""A process of the worker's own, and the pipe to it: spawning, its death with the worker, reaping it.

The worker and its children are the same program at the same version, so what crosses the pipe is pickled. Nothing that
came from Redis is ever more than text, bytes and numbers there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import queue

_REAP_S = 5.0
_PR_SET_PDEATHSIG = 1
_PROGRAM = "import gc; gc.disable(); from {} import main; gc.freeze(); gc.enable(); main()"


def spawn(module: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts a process that runs `main()` of a module, and returns it with our end of the pipe.

    The other end is `theirs()`. Python is told not to import from the current folder, and to look for no garbage in
    what it imports, all of which stays.
    """
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM.format(module), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return process, ours


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def reap(process: subprocess.Popen[bytes]) -> str:
    """How a process ended whose pipe is closed; one that lingers is killed."""
    try:
        code = process.wait(timeout=_REAP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


# -- at the other end ------------------------------------------------------------------------------------------------


def theirs() -> Connection:
    """The pipe of a process that was spawned, which leaves Ctrl-C to the worker.

    Who is frozen reads no pipe, and on Linux ends with the worker all the same.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return Connection(int(sys.argv[1]))


def say(pipe: Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError:
        os._exit(0)  # the worker is gone, and nobody wants what was made: as in `listen`, whichever finds it first


def listen(pipe: Connection, inbox: queue.SimpleQueue[object]) -> None:
    """Moves messages out of the pipe, so that the worker is soon rid of them; ends the process with the worker."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        # Not sys.exit: the main thread may be busy for minutes, and nobody wants what it makes.
        os._exit(0)
