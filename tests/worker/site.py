"""A server that can be broken and the workers at it, in processes of the test's own, and the account of their jobs."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from redis import Redis

from impetus_producer import Producer

from .account import is_quiet, take_account
from .breakable import Server, Workers
from .conftest import eventually

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

    def start(
        self, *, a_ms: float = 4.0, wait: bool = True, roles: tuple[str, ...] = ("embedding",), **settings: Any
    ) -> Workers:
        before = len(self.names())
        workers = Workers(
            self.url, self.log(len(self._workers)), roles=roles, lease_s=LEASE_S, simulated_a_ms=a_ms, **settings
        )
        self._workers.append(workers)
        if wait:
            eventually(lambda: len(self.names()) >= before + len(roles))
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
            waiting.difference_update({each for each in waiting if self.status(each) in ("finished", "failed")})
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
            for pid in (*workers.worker_pids(), *workers.engine_pids()):
                os.kill(pid, signal.SIGCONT)
            workers.stop()
        self.connection.close()
        self.producer.connection.close()
        self.server.kill()
