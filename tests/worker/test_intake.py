"""When a worker claims, from which queues and how much."""

from __future__ import annotations

from impetus_worker.batches.batcher import Room
from impetus_worker.leases.claims import Claim
from impetus_worker.leases.intake import Intake, Wanted

QUEUES = ("embedding", "embedding-bulk")
ROOM, NO_BULK, NONE = Room(8, 4), Room(8, 0), Room(0, 0)


class Desk:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.intake = Intake({queue: lambda queue=queue: self.asked.append(queue) for queue in QUEUES})  # type: ignore[misc]

    def learn(self, wanted: Wanted | None, *, more: bool = False, suspended: bool = False, now: float = 0.0) -> None:
        assert wanted is not None
        self.intake.learn(wanted, Claim(suspended, more, []), now)


def test_bulk_is_claimed_only_where_there_is_room_for_it() -> None:
    intake = Desk().intake
    assert intake.wanted(ROOM, 0.0) == Wanted(QUEUES, 4)
    assert intake.wanted(NO_BULK, 0.0) == Wanted(QUEUES[:1], 8)
    assert intake.wanted(NONE, 0.0) is None


def test_bulk_to_choose_from_is_claimed_where_nothing_else_can_be_and_of_a_backlog_alone() -> None:
    desk, ahead = Desk(), Room(0, 0, ahead=3)
    assert desk.intake.wanted(ahead, 0.0) is None
    desk.learn(desk.intake.wanted(ROOM, 0.0), more=True)
    assert desk.intake.wanted(Room(8, 4, ahead=3), 0.0) == Wanted(QUEUES, 4)
    wanted = desk.intake.wanted(ahead, 0.0)
    assert wanted == Wanted(QUEUES[1:], 3)
    desk.learn(wanted)
    assert desk.intake.wanted(ahead, 0.0) is None


def test_a_queue_that_was_found_empty_is_claimed_from_when_its_bell_rings_or_after_a_while() -> None:
    desk = Desk()
    desk.learn(desk.intake.wanted(ROOM, 0.0))
    assert desk.asked == list(QUEUES)
    assert desk.intake.wanted(ROOM, 1.0) is None
    assert desk.intake.is_dry(1.0)
    desk.intake.hear("embedding-bulk")
    assert desk.intake.wanted(NO_BULK, 1.0) is None
    assert desk.intake.wanted(ROOM, 1.0) == Wanted(QUEUES, 4)
    desk.learn(desk.intake.wanted(ROOM, 1.0), now=1.0)
    assert desk.intake.wanted(ROOM, 30.9) is None
    assert desk.intake.wanted(ROOM, 31.1) == Wanted(QUEUES, 4)


def test_a_queue_that_may_have_more_is_claimed_from_again_and_one_not_asked_is_not_known_to_be_empty() -> None:
    desk = Desk()
    desk.learn(desk.intake.wanted(ROOM, 0.0), more=True)
    assert desk.asked == []
    desk.learn(desk.intake.wanted(NO_BULK, 0.0))
    assert desk.asked == ["embedding"]
    assert desk.intake.wanted(NO_BULK, 0.0) is None
    assert desk.intake.wanted(ROOM, 0.0) == Wanted(QUEUES, 4)


def test_a_suspended_worker_asks_again_after_a_second_and_a_paused_one_does_not() -> None:
    desk = Desk()
    desk.learn(desk.intake.wanted(ROOM, 0.0), suspended=True)
    assert desk.intake.wanted(ROOM, 0.9) is None
    assert desk.intake.wakes_at(0.9) == 1.0
    assert desk.intake.wanted(ROOM, 1.0) == Wanted(QUEUES, 4)
    desk.intake.pause(True)
    assert desk.intake.wanted(ROOM, 99.0) is None
    desk.intake.pause(False)
    assert desk.intake.wanted(ROOM, 99.0) == Wanted(QUEUES, 4)
