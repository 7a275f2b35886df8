"""A server that can be broken and the workers at it, in processes of the test's own, and the account of their jobs."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from redis import Redis

from impetus_producer import Producer
from tests.patience import eventually

from ..conftest import listening
from .account import is_quiet, take_account
from .breakable import Server, Workers, signal_to
from .proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LEASE_S = 2
"""Short, so that one can be outlived."""


class Site:
    """A server with an append-only file, and the workers at it. Everything ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder / "server")
        self.server.start()
        self.url = self.server.url
        self.connection = Redis.from_url(self.url)
        self.producer = Producer(self.url)
        self._workers: list[Workers] = []
        self._networks: list[Proxy] = []
        self._servers = [self.server]

    def network(self) -> Proxy:
        """A way to the server that can be broken."""
        self._networks.append(Proxy(self.server.port))
        return self._networks[-1]

    def another_server(self) -> Server:
        """One that may take over."""
        self._servers.append(Server(self.folder / f"server-{len(self._servers)}").start())
        return self._servers[-1]

    def start(
        self,
        *,
        a_ms: float = 4.0,
        wait: bool = True,
        roles: tuple[str, ...] = ("embedding",),
        url: str | None = None,
        lease_s: int = LEASE_S,
        **settings: Any,
    ) -> Workers:
        before = listening(self.connection)
        log = self.log(len(self._workers))
        workers = Workers(url or self.url, log, roles=roles, lease_s=lease_s, simulated_a_ms=a_ms, **settings)
        self._workers.append(workers)
        if wait:
            eventually(lambda: len(listening(self.connection) - before) >= len(roles))
        return workers

    def names(self) -> list[str]:
        keys: Any = self.connection.smembers("rq:workers")
        return [key.decode() for key in keys]

    def log(self, number: int) -> Path:
        return self.folder / f"workers-{number}.log"

    def said(self, number: int = 0) -> str:
        return self.log(number).read_text()

    def status(self, job_id: str) -> str:
        status: Any = self.connection.hget(f"rq:job:{job_id}", "status")
        return str((status or b"").decode())

    def await_ended(self, job_ids: Iterable[str], limit_s: float = 40) -> None:
        waiting = set(job_ids)

        def look() -> bool:
            asked = list(waiting)
            with self.connection.pipeline(transaction=False) as several:
                for each in asked:
                    several.hget(f"rq:job:{each}", "status")
                ended = zip(asked, several.execute(), strict=True)
            waiting.difference_update({each for each, status in ended if status in (b"finished", b"failed")})
            return not waiting

        eventually(look, limit_s)

    def check(self, job_ids: Iterable[str], *, failed: int = 0, some_discarded: bool = False) -> None:
        """The account: all of these ended, each once, `failed` of them for a reason of their own."""
        job_ids = list(job_ids)
        self.await_ended(job_ids)
        # What a lost answer left in the books goes with its lease.
        eventually(lambda: is_quiet(self.connection), LEASE_S + 20)
        account = take_account(self.connection, job_ids, some_discarded=some_discarded)
        assert not account.problems, str(account)
        assert (account.finished, sum(account.failed.values())) == (account.accepted - failed, failed)
        assert account.accepted >= len(job_ids)
        for number in range(len(self._workers)):
            assert "Traceback" not in self.said(number)

    def cut(self, kind: str) -> None:
        self.connection.execute_command("CLIENT", "KILL", "TYPE", kind)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        for workers in self._workers:
            for pid in workers.tree():
                signal_to(pid, signal.SIGCONT)
            workers.stop()
        self.connection.close()
        self.producer.connection.close()
        for network in self._networks:
            network.close()
        for server in self._servers:
            server.kill()
