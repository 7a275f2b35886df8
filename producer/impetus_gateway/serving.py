"""A gateway's process, and its end.

After SIGTERM or Ctrl-C nothing new is taken, and what is being answered may end; a second signal ends it.
"""

from __future__ import annotations

import asyncio
import resource
import signal
from typing import TYPE_CHECKING

import uvicorn

from .address import BACKLOG_CONNECTIONS
from .app import make_app
from .entry.heads import BoundedHeads

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from .address import Address
    from .gateway import Gateway

_LOOK_EVERY_S = 1.0
_OPEN_FILES = 10_240


def serve(
    gateway: Gateway,
    address: Address,
    *,
    access_log: bool = False,
    on_start: Callable[[str], None] = lambda url: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Serves until a signal ends it. `on_start` is told the URL once it listens. `check` is called about once a second,
    and ends the gateway with what it raises.
    """
    _allow_files()
    listening = address.open()
    server = make_server(gateway, address, access_log=access_log)
    asyncio.run(_serve(server, listening, lambda: on_start(address.url(listening.getsockname()[1])), check))


def _allow_files() -> None:
    """As many open files, and so connections, as this process may ask for: by default it may have 256 on a Mac."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_server(gateway: Gateway, address: Address, *, access_log: bool = False) -> Server:
    """The server of one gateway, which waits for its requests when it ends."""
    config = uvicorn.Config(
        make_app(gateway),
        http=BoundedHeads,
        timeout_graceful_shutdown=max(1, round(gateway.settings.drain_s)),
        backlog=BACKLOG_CONNECTIONS,
        ssl_certfile=address.certfile,
        ssl_keyfile=address.keyfile,
        server_header=False,
        access_log=access_log,
        log_level="info" if access_log else "warning",
        ws="none",
        lifespan="on",
    )
    server = Server(config)
    gateway.is_leaving = lambda: server.should_exit
    return server


class Server(uvicorn.Server):
    """One whose end by a signal is an end in order, and no signal of its own again."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended_by: int | None = None

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.ended_by is not None:
            self.force_exit = True
        self.ended_by = sig
        self.should_exit = True


async def _serve(server: Server, listening: socket, on_start: Callable[[], None], check: Callable[[], None]) -> None:
    serving = asyncio.create_task(server.serve([listening]))
    try:
        while not server.started and not serving.done():
            await asyncio.wait({serving}, timeout=0.02)
        if server.started:
            on_start()
        while not serving.done():
            await asyncio.wait({serving}, timeout=_LOOK_EVERY_S)
            await asyncio.to_thread(check)
    finally:
        server.should_exit = True
        await serving
    if server.ended_by == signal.SIGINT:
        raise KeyboardInterrupt
