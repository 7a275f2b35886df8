"""The ledger without a server: what is sent again, what is kept, and in which order."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from impetus_producer.contract import StreamEvent
from impetus_worker.leases.claims import Answer, Claim, ClaimedJob, Claims
from impetus_worker.leases.intake import Wanted
from impetus_worker.leases.ledger import Ledger
from impetus_worker.leases.outcomes import Failed, Finished, Returned, Said
from impetus_worker.leases.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from impetus_worker.leases.scripts import Call

WANTED = Wanted(("embedding",), 5)


def claimed(job_id: str, token: str = "", queue: str = "embedding", **fields: bytes) -> ClaimedJob:
    return ClaimedJob(
        job_id, token or f"i-{job_id}", queue, {name.encode(): value for name, value in fields.items()}, 0.0
    )


class Book:
    """A ledger, what it sent, and what it handed on."""

    def __init__(self) -> None:
        self.sent: list[Sequence[Call[Any]]] = []
        self.for_rq: list[Any] = []
        self.came: list[Claim] = []
        endings: Any = SimpleNamespace(waiting=0, put=self.for_rq.append)
        self.ledger = Ledger(
            Claims("w1", 20),
            "w1",
            endings,
            self.sent.append,
            on_claim=lambda wanted, claim: self._take(claim),
            on_abandoned=lambda job_ids: None,
        )

    def _take(self, claim: Claim) -> None:
        self.came.append(claim)
        self.ledger.take(claim.jobs, 0.0)

    def end(self, *jobs: ClaimedJob) -> None:
        self.ledger.take(jobs, 0.0)
        self.ledger.note([Finished(job, b"{}") for job in jobs])

    def ended(self, at: int = -1) -> list[str]:
        """The ids of the jobs that an exchange tells of."""
        (finish,) = (call for call in self.sent[at] if call.script is Script.named("finish"))
        return list(finish.arguments[2::10])


def test_an_ending_whose_answer_was_lost_is_sent_again_and_nobody_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    book, jobs = Book(), [claimed("one"), claimed("two")]
    book.end(*jobs)
    book.ledger.send(None, 0.0)
    book.ledger.recall()
    assert not book.ledger.is_empty
    book.ledger.send(None, 0.0)
    assert book.ended() == ["one", "two"]
    with caplog.at_level(logging.WARNING):
        assert book.ledger.receive([[Answer.NOT_OURS, Answer.DONE]])
    assert caplog.messages == []
    assert book.ledger.held == {}


def test_an_ending_that_was_another_runs_to_write_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    book = Book()
    book.end(claimed("one"))
    book.ledger.send(None, 0.0)
    with caplog.at_level(logging.WARNING):
        book.ledger.receive([[Answer.NOT_OURS]])
    assert caplog.messages == ["job one: it is another's by now, so its result is not written"]


def test_a_claim_beside_a_refused_ending_is_taken_and_the_ending_is_sent_again() -> None:
    book, new = Book(), claimed("new")
    book.end(claimed("one"))
    book.ledger.send(WANTED, 0.0)
    refused = ResponseError("MISCONF the disk is full")
    assert not book.ledger.receive([refused, Claim(suspended=False, jobs=[new])])
    assert set(book.ledger.held) == {"one", "new"}
    assert book.ledger.unfinished() == [new]
    book.ledger.send(None, 0.0)
    assert book.ended() == ["one"]


def test_a_refused_claim_costs_the_endings_beside_it_nothing() -> None:
    book = Book()
    book.end(claimed("one"))
    book.ledger.send(WANTED, 0.0)
    assert not book.ledger.receive([[Answer.DONE], ResponseError("OOM no memory")])
    assert book.ledger.held == {}
    assert book.came == []


def test_the_end_of_an_older_run_does_not_end_a_newer_one_of_the_same_job() -> None:
    book, old, new = Book(), claimed("one", "i1"), claimed("one", "i2")
    book.ledger.take([old], 0.0)
    book.ledger.note([Returned(old)])
    book.ledger.send(WANTED, 0.0)
    book.ledger.recall()  # it was run all the same, and the same worker claims the job again
    book.ledger.take([new], 0.0)
    book.ledger.send(None, 0.0)
    book.ledger.receive([[Answer.NOT_OURS]])
    assert book.ledger.held == {"one": new}
    assert book.ledger.open == {"one": new}
    book.ledger.forget(old)
    assert book.ledger.held == {"one": new}


def test_what_only_rq_can_end_goes_to_it_and_is_held_until_it_has() -> None:
    book = Book()
    retried, with_dependents = claimed("retried", retries_left=b"1"), claimed("parent")
    book.ledger.take([retried, with_dependents], 0.0)
    book.ledger.note([Failed(retried, ValueError("x")), Finished(with_dependents, b"{}")])
    book.ledger.send(None, 0.0)
    assert [outcome.job.id for outcome in book.for_rq] == ["retried"]
    book.ledger.receive([[Answer.FOR_RQ]])
    assert [outcome.job.id for outcome in book.for_rq] == ["retried", "parent"]
    assert set(book.ledger.held) == {"retried", "parent"}
    assert not book.ledger.is_empty
    assert book.ledger.open == {}


def test_a_run_is_ended_by_rqs_means_only_when_its_last_words_are_written() -> None:
    book, spoke, other = Book(), claimed("spoke", retries_left=b"1"), claimed("other", retries_left=b"1")
    book.ledger.take([spoke, other], 0.0)
    book.ledger.note([Said(spoke, StreamEvent.TEXT, "r", text="a")])
    book.ledger.note([Failed(each, ValueError("x")) for each in (spoke, other)])
    book.ledger.send(None, 0.0)
    assert [outcome.job.id for outcome in book.for_rq] == ["other"]
    book.ledger.recall()
    book.ledger.send(None, 0.0)
    assert [outcome.job.id for outcome in book.for_rq] == ["other"]
    book.ledger.receive([[]])
    assert book.ledger.has_news(0.0)
    book.ledger.send(None, 0.0)
    assert [outcome.job.id for outcome in book.for_rq] == ["other", "spoke"]


def test_an_ending_goes_beside_the_last_words_of_its_run_and_never_before_them() -> None:
    book, job, other = Book(), claimed("one"), claimed("other")
    book.ledger.take([job, other], 0.0)
    book.ledger.note([Said(job, StreamEvent.TEXT, "r", text="a")])
    book.ledger.send(None, 0.0)
    book.ledger.note(
        [Said(job, StreamEvent.END, "r", status="finished"), *(Finished(each, b"{}") for each in (job, other))]
    )
    book.ledger.send(None, 0.0)  # beside the words that are under way, others would overtake them
    assert book.ended() == ["other"]
    book.ledger.receive([[]])
    book.ledger.send(None, 0.0)
    assert [call.script for call in book.sent[-1]] == [Script.named("relay"), Script.named("finish")]
    assert book.ended() == ["one"]


def test_exchanges_that_are_under_way_are_answered_in_the_order_in_which_they_were_sent() -> None:
    book, one, two = Book(), claimed("one"), claimed("two")
    book.end(one)
    book.ledger.send(None, 0.0)
    book.end(two)
    book.ledger.send(None, 0.0)
    assert book.ledger.under_way == 2
    book.ledger.recall()
    book.ledger.receive([[Answer.DONE]])
    assert book.ledger.held == {"one": one}
    book.ledger.send(None, 0.0)
    assert book.ended() == ["one"]


def test_the_time_worked_is_told_once_however_often_it_is_sent() -> None:
    book, job = Book(), claimed("one")
    book.ledger.take([job], 100.0)
    book.ledger.note([Finished(job, b"{}")])
    book.ledger.send(None, 103.0)
    assert book.sent[-1][0].arguments[1] == "3.000000"
    book.ledger.recall()
    book.ledger.send(None, 104.0)  # waiting for the server is no work
    assert book.sent[-1][0].arguments[1] == "3.000000"
    book.ledger.receive([[Answer.DONE]])
    assert not book.ledger.has_news(300.0)


def test_a_job_that_ends_alone_costs_one_exchange_and_none_for_the_moment_it_took() -> None:
    book, job = Book(), claimed("one")
    book.ledger.take([job], 100.0)
    book.ledger.note([Finished(job, b"{}")])
    book.ledger.send(None, 103.0)
    assert not book.ledger.has_news(103.001)
    book.ledger.receive([[Answer.DONE]])
    assert not book.ledger.has_news(103.002)
    assert book.ledger.is_empty


def test_the_time_worked_for_a_run_that_became_anothers_is_told_too() -> None:
    book, job = Book(), claimed("one")
    book.ledger.take([job], 100.0)
    book.ledger.forget(job)
    assert book.ledger.has_news(102.0)
    book.ledger.send(None, 102.0)
    assert book.sent[-1][0].arguments[1] == "2.000000"
    book.ledger.receive([[]])
    assert not book.ledger.has_news(300.0)


def test_no_more_endings_go_at_once_than_a_server_should_write_at_once() -> None:
    book = Book()
    book.end(*(claimed(f"job{number}") for number in range(1030)))
    book.ledger.send(None, 0.0)
    assert len(book.ended()) == 1024
    book.ledger.send(None, 0.0)
    assert len(book.ended()) == 6
    large = [claimed(f"large{number}") for number in range(4)]
    book.ledger.take(large, 0.0)
    book.ledger.note([Finished(job, b"{}", vectors=bytes(150_000)) for job in large])
    book.ledger.send(None, 0.0)
    assert len(book.ended()) == 2


def test_how_a_job_ended_that_somebody_waits_for_is_told_before_how_bulk_did() -> None:
    book, bulk = Book(), [claimed(f"bulk{number}", queue="embedding-bulk") for number in range(3)]
    book.end(*bulk, claimed("first"), claimed("second"))
    book.ledger.send(None, 0.0)
    assert book.ended() == ["first", "second", "bulk0", "bulk1", "bulk2"]
    book.end(claimed("third"))
    book.ledger.recall()
    book.ledger.send(None, 0.0)
    assert book.ended() == ["first", "second", "third", "bulk0", "bulk1", "bulk2"]


def test_what_jobs_say_is_in_one_exchange_at_a_time_so_that_it_stays_in_order() -> None:
    book, job = Book(), claimed("one")
    book.ledger.take([job], 0.0)
    book.ledger.note([Said(job, StreamEvent.TEXT, "run", 0, "a")])
    book.ledger.send(None, 0.0)
    book.ledger.note([Said(job, StreamEvent.TEXT, "run", 1, "b")])
    book.ledger.send(WANTED, 0.0)
    scripts = [[call.script for call in calls] for calls in book.sent]
    assert scripts == [[Script.named("relay")], [Script.named("claim")]]
    book.ledger.recall()
    book.ledger.receive([Claim(suspended=False, jobs=[])])
    book.ledger.send(None, 0.0)
    (relay,) = book.sent[-1]
    assert [relay.arguments[at] for at in (10, 19)] == [b"a", b"b"]


def test_what_goes_back_to_its_queue_goes_the_last_claimed_first_and_after_no_later_claim() -> None:
    book, jobs = Book(), [claimed(f"job{number}", f"i{number}") for number in range(3)]
    book.ledger.take([*jobs, claimed("goes on")], 0.0)
    book.ledger.send(WANTED, 0.0)
    book.ledger.note([Returned(jobs[at]) for at in (1, 2, 0)])
    assert not book.ledger.has_news(0.0)  # what the claim brings stood behind these, and must not go before them
    book.ledger.send(None, 0.0)
    assert len(book.sent) == 1
    later = claimed("later", "i9")
    book.ledger.receive([Claim(suspended=False, jobs=[later])])
    book.ledger.note([Returned(later)])
    book.ledger.send(None, 0.0)
    assert book.ended() == ["later", "job2", "job1", "job0"]


def test_an_ending_for_which_somebody_waits_is_worth_an_exchange_of_its_own_and_one_of_bulk_is_not() -> None:
    book = Book()
    book.end(claimed("bulk", queue="embedding-bulk"))
    assert not book.ledger.is_pressing
    book.end(claimed("awaited"))
    assert book.ledger.is_pressing
    book.ledger.send(None, 0.0)
    assert not book.ledger.is_pressing


def test_it_is_known_until_its_answer_that_what_a_job_said_is_under_way() -> None:
    book, job = Book(), claimed("speaks")
    book.ledger.take([job], 0.0)
    book.ledger.send(WANTED, 0.0)
    assert not book.ledger.is_relaying
    book.ledger.note([Said(job, StreamEvent.TEXT, "run", 0, "a")])
    book.ledger.send(None, 1.0)
    assert book.ledger.is_relaying
    book.ledger.receive([Claim(False, [])])
    assert book.ledger.is_relaying
    book.ledger.receive([[]])
    assert not book.ledger.is_relaying
