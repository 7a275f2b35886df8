"""When a worker claims, from which queues and how much."""

from __future__ import annotations

import pytest

from impetus_worker.batches.batcher import Held, Room
from impetus_worker.leases.claims import Claim, Left
from impetus_worker.leases.intake import Intake, Wanted
from impetus_worker.leases.portions import WHOLE, Portion, Share

QUEUES = ("embedding", "embedding-bulk")
ROOM, NO_BULK, NONE = Room(8, 4), Room(8, 0), Room(0, 0)


def whole(queues: tuple[str, ...], jobs: int) -> Wanted:
    """As one alone asks."""
    return Wanted(queues, jobs, (WHOLE,) * len(queues))


class Desk:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.intake = Intake({queue: lambda queue=queue: self.asked.append(queue) for queue in QUEUES})  # type: ignore[misc]

    def learn(self, wanted: Wanted | None, *, more: bool = False, suspended: bool = False, now: float = 0.0) -> None:
        assert wanted is not None
        self.intake.learn(wanted, Claim(suspended, [], (Left(int(more)),) * len(wanted.queues)), now)
        self.intake.listen()


def test_bulk_is_claimed_only_where_there_is_room_for_it() -> None:
    intake = Desk().intake
    assert intake.wanted(ROOM, 0.0) == whole(QUEUES, 4)
    assert intake.wanted(NO_BULK, 0.0) == whole(QUEUES[:1], 8)
    assert intake.wanted(NONE, 0.0) is None


def test_bulk_to_choose_from_is_claimed_where_nothing_else_can_be_and_of_a_backlog_alone() -> None:
    desk, ahead = Desk(), Room(0, 0, ahead=3)
    assert desk.intake.wanted(ahead, 0.0) is None
    desk.learn(desk.intake.wanted(ROOM, 0.0), more=True)
    assert desk.intake.wanted(Room(8, 4, ahead=3), 0.0) == whole(QUEUES, 4)
    wanted = desk.intake.wanted(ahead, 0.0)
    assert wanted == whole(QUEUES[1:], 3)
    desk.learn(wanted)
    assert desk.intake.wanted(ahead, 0.0) is None


def test_whoever_waits_is_put_in_line_before_bulk_is_held_and_of_a_backlog_alone() -> None:
    desk, full = Desk(), Room(0, 0, ahead=3, in_line=1)
    assert desk.intake.wanted(full, 0.0) is None
    desk.learn(desk.intake.wanted(ROOM, 0.0), more=True)
    wanted = desk.intake.wanted(full, 0.0)
    assert wanted == whole(QUEUES[:1], 1)
    assert desk.intake.wanted(Room(1, 0, in_line=1), 0.0) == whole(QUEUES[:1], 1)
    desk.learn(wanted)
    assert desk.intake.wanted(full, 0.0) is None


def test_a_queue_that_was_found_empty_is_claimed_from_when_its_bell_rings_or_after_a_while() -> None:
    desk = Desk()
    desk.learn(desk.intake.wanted(ROOM, 0.0))
    assert sorted(desk.asked) == list(QUEUES)
    assert desk.intake.wanted(ROOM, 1.0) is None
    assert desk.intake.is_dry(1.0)
    desk.intake.hear("embedding-bulk")
    assert desk.intake.wanted(NO_BULK, 1.0) is None
    assert desk.intake.wanted(ROOM, 1.0) == whole(QUEUES, 4)
    desk.learn(desk.intake.wanted(ROOM, 1.0), now=1.0)
    assert desk.intake.wanted(ROOM, 30.9) is None
    assert desk.intake.wanted(ROOM, 31.1) == whole(QUEUES, 4)


def test_a_queue_that_may_have_more_is_claimed_from_again_and_one_not_asked_is_not_known_to_be_empty() -> None:
    desk = Desk()
    desk.learn(desk.intake.wanted(ROOM, 0.0), more=True)
    assert desk.asked == []
    desk.learn(desk.intake.wanted(NO_BULK, 0.0))
    assert desk.asked == ["embedding"]
    assert desk.intake.wanted(NO_BULK, 0.0) is None
    assert desk.intake.wanted(ROOM, 0.0) == whole(QUEUES, 4)


def test_a_suspended_worker_asks_again_after_a_second_and_a_paused_one_does_not() -> None:
    desk = Desk()
    desk.learn(desk.intake.wanted(ROOM, 0.0), suspended=True)
    assert desk.intake.wanted(ROOM, 0.9) is None
    assert desk.intake.wakes_at(0.9) == 1.0
    assert desk.intake.wanted(ROOM, 1.0) == whole(QUEUES, 4)
    desk.intake.pause(True)
    assert desk.intake.wanted(ROOM, 99.0) is None
    desk.intake.pause(False)
    assert desk.intake.wanted(ROOM, 99.0) == whole(QUEUES, 4)


# -- beside others -----------------------------------------------------------------------------------------------------

SLOW = Share(own=0.1, best=0.9)


def left_to_others(desk: Desk, now: float, *, open_jobs: int = 4, first: bytes = b"", room: Room = ROOM) -> Wanted:
    """Asks, and is told that all that waits in its last queue is for others."""
    wanted = desk.intake.wanted(room, now)
    assert wanted is not None
    left = [Left(0)] * (len(wanted.queues) - 1) + [Left(open_jobs, open_jobs, for_others=True, first=first)]
    desk.intake.learn(wanted, Claim(False, [], tuple(left)), now)
    desk.intake.listen()
    return wanted


def test_a_claim_says_what_is_held_and_whose_share_it_is() -> None:
    desk = Desk()
    desk.intake.share((SLOW, Share(0.5, 0.5)))
    wanted = desk.intake.wanted(Room(8, 4, held=(Held(1, 0.1), Held(7, 2.0))), 0.0)
    assert wanted == Wanted(QUEUES, 4, (Portion(SLOW, 1, 0.1), Portion(Share(0.5, 0.5), 7, 2.0)))


def test_what_is_left_to_others_is_asked_for_again_a_tenth_of_a_second_later() -> None:
    desk = Desk()
    left_to_others(desk, 0.0)
    assert desk.asked == ["embedding"], "and the other queue is listened to meanwhile"
    assert not desk.intake.has_backlog
    assert not desk.intake.is_dry(0.0)
    assert desk.intake.wanted(ROOM, 0.09) is None
    assert desk.intake.wakes_at(0.09) == 0.1
    assert desk.intake.wanted(ROOM, 0.1) is not None
    desk.intake.hear("embedding")
    assert desk.intake.wanted(ROOM, 0.05) is not None


@pytest.mark.parametrize(("job_s", "asks_after_s"), [(0.01, 0.1), (0.5, 0.5), (20.0, 1.0)])
def test_who_has_some_of_a_queue_asks_for_what_is_left_to_others_as_seldom_as_it_ends_one(
    job_s: float, asks_after_s: float
) -> None:
    desk, room = Desk(), Room(8, 4, held=(Held(), Held(3, job_s)))
    left_to_others(desk, 0.0, room=room)
    assert desk.intake.wanted(room, asks_after_s - 0.001) is None
    assert desk.intake.wakes_at(0.0) == asks_after_s
    assert desk.intake.wanted(room, asks_after_s) is not None
    ended = Room(8, 4, held=(Held(), Held(2, job_s)))
    assert desk.intake.wanted(ended, 0.001) is not None, "and at once when it has ended one"


def test_what_others_leave_lying_is_anybodys_after_a_while() -> None:
    desk = Desk()
    desk.intake.share((SLOW, SLOW))
    assert left_to_others(desk, 0.0).portions[1].share == SLOW
    assert left_to_others(desk, 3.0, open_jobs=3).portions[1].share == SLOW
    left_to_others(desk, 7.9, open_jobs=3)
    assert left_to_others(desk, 8.0, open_jobs=3).portions[1].share == SLOW, "since one ended 5 s have passed"
    assert desk.intake.wanted(ROOM, 8.1).portions == (Portion(SLOW), WHOLE)  # type: ignore[union-attr]
    assert desk.intake.wanted(ROOM, 67.9).portions[1] == WHOLE  # type: ignore[union-attr]
    assert desk.intake.wanted(ROOM, 68.1).portions[1] == Portion(SLOW)  # type: ignore[union-attr]


def test_others_that_take_jobs_are_not_taken_to_leave_them_lying_though_as_many_come() -> None:
    desk = Desk()
    desk.intake.share((SLOW, SLOW))
    left_to_others(desk, 0.0, open_jobs=3, first=b"a")
    for now, open_jobs, first in ((4.0, 128, b"a"), (8.0, 127, b"a"), (12.0, 127, b"b"), (16.9, 128, b"b")):
        assert left_to_others(desk, now, open_jobs=open_jobs, first=first).portions[1].share == SLOW
    left_to_others(desk, 17.0, open_jobs=129, first=b"b")
    assert desk.intake.wanted(ROOM, 17.1).portions[1] == WHOLE  # type: ignore[union-attr]


def test_where_callers_wait_nobody_is_waited_for_longer_than_a_moment() -> None:
    desk, room = Desk(), Room(8, 0, held=(Held(0, job_s=0.01), Held()))
    desk.intake.share((SLOW, SLOW))
    for now in (0.0, 0.25):
        left_to_others(desk, now, room=room)
    wanted = desk.intake.wanted(room, 0.35)
    assert wanted is not None
    assert [portion.share for portion in wanted.portions] == [Share()]


def test_who_is_slow_waits_as_long_as_it_would_need_itself() -> None:
    desk, slow = Desk(), Room(8, 4, held=(Held(), Held(0, job_s=20.0)))
    desk.intake.share((SLOW, SLOW))
    for now in (0.0, 19.0):
        left_to_others(desk, now, room=slow)
    assert desk.intake.wanted(slow, 19.5).portions[1].share == SLOW  # type: ignore[union-attr]
    left_to_others(desk, 20.0, room=slow)
    assert desk.intake.wanted(slow, 20.5).portions[1].share == Share()  # type: ignore[union-attr]
