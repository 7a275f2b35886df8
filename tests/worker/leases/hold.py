"""The scripts of one worker, each run at once, and jobs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_worker.leases.claims import Answer, Claim, ClaimedJob, Claims, Ending, Renewal, recover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from impetus_worker.leases.portions import Portion


LEASE_S = 20
EMBED = "impetus_worker.jobs.embed"


class Hold:
    """`Claims` of one worker, each call run at once."""

    def __init__(self, connection: Redis, worker: str, lease_s: int = LEASE_S) -> None:
        self.connection = connection
        self.calls = Claims(worker, lease_s)

    def claim(
        self, queues: Sequence[str], max_jobs: int, max_bytes: int = 10**9, portions: Sequence[Portion] = ()
    ) -> Claim:
        return self.calls.claim(queues, max_jobs, max_bytes, portions).run(self.connection)

    def finish(self, endings: Sequence[Ending], worked_s: float = 0.0) -> list[Answer]:
        return self.calls.finish(endings, worked_s).run(self.connection)

    def renew(self, jobs: Sequence[ClaimedJob]) -> Renewal:
        return self.calls.renew(jobs).run(self.connection)

    def holds(self, job: ClaimedJob) -> bool:
        return self.calls.holds(job).run(self.connection)

    def lease_end(self, job: ClaimedJob) -> float:
        score = self.connection.zscore(f"impetus:leases:{job.queue}", job.id)
        assert score is not None
        return float(score)

    def time_s(self) -> int:
        """By the server's clock."""
        time: Any = self.connection.time()
        return int(time[0])

    def let_lapse(self, job: ClaimedJob) -> None:
        """As time would."""
        self.connection.zadd(f"impetus:leases:{job.queue}", {job.id: 1}, xx=True)

    def recover(self, queue: str = "embedding") -> list[str]:
        self.connection.delete(f"impetus:recovery:{queue}")
        return recover(queue, 1.0).run(self.connection)

    def stands(self, job: ClaimedJob) -> bool:
        held: Any = self.connection.hget(f"impetus:tokens:{job.queue}", job.id)
        return bool(held and held.startswith(job.token.encode()))


def enqueue(connection: Redis, count: int = 1, queue: str = "embedding", **options: Any) -> list[Job]:
    target = Queue(queue, connection=connection, serializer=JSONSerializer)
    return [target.enqueue(EMBED, {"input": str(number)}, **options) for number in range(count)]


def claim_one(claims: Hold, connection: Redis, **options: Any) -> ClaimedJob:
    enqueue(connection, 1, **options)
    return claims.claim(["embedding"], 1).jobs[0]


def fetch(job: ClaimedJob | Job, connection: Redis) -> Job:
    return Job.fetch(job.id, connection=connection, serializer=JSONSerializer)
