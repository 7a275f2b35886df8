"""Several servers as one: each job is at one of them, which its id tells.

The highest hash of a server and the id together decides (rendezvous hashing), so that whoever knows the same servers
looks for a job where it was put, and a server more moves no other's jobs.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import cycle
from random import randrange
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import InvalidRequestError
from ..reading.until_error import UntilError
from . import jobs
from .requests import EmbeddingsT, EmbeddingT, GenerationT, Requests, RerankingT
from .texts import MOST_CHARACTERS, check_many, checked, parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MemberT = TypeVar("MemberT", bound="Requests[Any, Any, Any, Any]")
_JOBS_AT_ONCE = 32
"""So many of `embed_many` go to one server before it is the next one's turn."""


class Spread(
    Requests[EmbeddingT, EmbeddingsT, GenerationT, RerankingT],
    Generic[MemberT, EmbeddingT, EmbeddingsT, GenerationT, RerankingT],
):
    """Which of several servers a job is at, and where the next one goes.

    Raises `InvalidRequestError` for servers of which two are one.
    """

    def __init__(self, servers: Sequence[MemberT]) -> None:
        self.servers = tuple(servers)
        self._names = [_name(each) for each in self.servers]
        if not self.servers or len(set(self._names)) < len(self._names):
            raise InvalidRequestError("give at least one server, and each once")
        first = self.servers[0]
        super().__init__(
            first.options.timeout_s, first.options.result_ttl_s, first.options.failure_ttl_s, first.patience.limit_s
        )
        # Of many that send one job each, not all begin with the same.
        begin = randrange(len(self.servers))
        self.turns = cycle(self.servers[begin:] + self.servers[:begin])

    def of(self, job_id: str) -> MemberT:
        """The one whose server a job of this id is at."""
        hashes = [blake2b(f"{name} {job_id}".encode(errors="replace"), digest_size=8).digest() for name in self._names]
        return self.servers[hashes.index(max(hashes))]

    def new_id(self) -> str:
        """Of a job to be enqueued at a server that is not known to be away, if there is one."""
        there = [each for each in self.servers if not each.patience.away] or self.servers
        while self.of(job_id := jobs.new_id()) not in there:
            pass
        return job_id

    def new_id_at(self, member: MemberT) -> str:
        while self.of(job_id := jobs.new_id()) is not member:
            pass
        return job_id

    def by_server(self, job_ids: Iterable[str]) -> dict[MemberT, list[str]]:
        """Which of these jobs are where."""
        found: dict[MemberT, list[str]] = {}
        for job_id in job_ids:
            found.setdefault(self.of(job_id), []).append(job_id)
        return found

    def embed_many(
        self, texts: Iterable[str], *, texts_per_job: int = 64, max_backlog_jobs: int = 256, **options: Any
    ) -> EmbeddingsT:
        """As `Producer.embed_many`, with as many jobs on each server's queue."""
        check_many(texts, texts_per_job, max_backlog_jobs)
        options |= {"texts_per_job": texts_per_job, "max_backlog_jobs": max_backlog_jobs}
        self.servers[0].embed_many((), **options)  # raises at once for options that no job could have
        return self._embed_many(UntilError(checked(texts)), options)

    def _embed_many(self, texts: UntilError[str], options: Mapping[str, Any]) -> EmbeddingsT:
        raise NotImplementedError


def portions(texts: Iterable[str], texts_per_job: int) -> Iterable[list[str]]:
    """What of many texts goes to one server, before it is the next one's turn."""
    return parts(texts, texts_per_job * _JOBS_AT_ONCE, MOST_CHARACTERS // 4, len)


def _name(member: Any) -> str:
    """What tells servers apart: where they are, and not who we are to them."""
    pool = member.connection.connection_pool
    settings = pool.connection_kwargs
    place = getattr(pool, "service_name", None) or settings.get("path") or f"{settings.get('host')}:{settings['port']}"
    return f"{place}/{settings.get('db', 0)}"
