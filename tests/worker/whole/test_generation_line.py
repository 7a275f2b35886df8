"""Generation jobs in line for a place, with real workers: each has one as soon as anybody has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from impetus_producer import Producer
from tests.patience import eventually

if TYPE_CHECKING:
    from tests.worker.conftest import Fleet

pytestmark = pytest.mark.system
PLACES = 8


def test_a_job_whose_turn_does_not_come_is_run_by_a_worker_that_has_a_place(fleet: Fleet) -> None:
    fleet.start("--max-concurrent-generations", str(PLACES), roles="generation")
    producer = Producer(fleet.url)
    for soon in [producer.generate(f"soon {number}", max_tokens=5) for number in range(2 * PLACES)]:
        soon.result(60)
    for number in range(PLACES):
        producer.generate(f"before {number}", max_tokens=5)
    late = [producer.generate(f"late {number}", max_tokens=100_000, ignore_eos=True) for number in range(PLACES + 2)]

    def of_each() -> list[int]:
        """How many of them each worker has."""
        holders = Counter(fleet.connection.hget(f"rq:job:{handle.job_id}", "worker_name") for handle in late)
        return sorted(holders[name] for name in holders if name is not None)

    # One is held in line, for places have become free often; none does now, and so it is given back.
    eventually(lambda: of_each()[-1:] > [PLACES - 1])
    fleet.start("--max-concurrent-generations", str(PLACES), roles="generation")
    eventually(lambda: of_each() == [2, PLACES])
    for handle in late:
        handle.cancel()
