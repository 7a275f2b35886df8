"""Which jobs the loop reads itself, what becomes of the others, and texts that no tokenizer can read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from impetus_worker.batches.generation import GenerationBatcher
from impetus_worker.batches.reading.rows import EncodedRequest
from impetus_worker.errors import PoisonedJobError
from impetus_worker.inbox import ReadElsewhere
from impetus_worker.leases.outcomes import Failed

from . import generating
from .batching import BULK, INFO, OneTokenAWord, batcher_of, given, job, run, take, vectors, words

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from impetus_worker.batches.embedding import EmbeddingBatcher
    from impetus_worker.leases.claims import ClaimedJob

LONG = words(100_000)


class PanicException(BaseException):
    """As a library written in Rust raises it: no `Exception`."""


class Picky(OneTokenAWord):
    """A tokenizer that cannot read a 13, and is said to stop at a 99."""

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Any]:
        if any("13" in text for text in texts):
            raise PanicException("13")
        if any("99" in text for text in texts):
            raise KeyboardInterrupt
        return super().encode(texts, prompt=prompt)


class Elsewhere:
    """Reads nothing, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, bool]] = []
        self.forgotten: list[str] = []

    def read(self, job: ClaimedJob, *, urgent: bool) -> None:
        self.given.append((job.id, urgent))

    def forget(self, tokens: Collection[str]) -> None:
        self.forgotten += tokens


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def batcher(elsewhere: Elsewhere) -> EmbeddingBatcher:
    return batcher_of(
        Picky(), max_batch_texts=8, max_batch_tokens=20, max_wait_s=0.0, elsewhere=elsewhere,
        clock=lambda: 0.0,
    )  # fmt: skip


def read(long: ClaimedJob, batcher: EmbeddingBatcher) -> ReadElsewhere:
    """What comes of it elsewhere."""
    request = batcher._reader._requests.read(long.fields)
    return ReadElsewhere(long.token, request)


def test_a_long_job_is_read_elsewhere_and_takes_a_place_meanwhile(
    batcher: EmbeddingBatcher, elsewhere: Elsewhere
) -> None:
    long, before = job(LONG), batcher.room()
    batcher.add([long])
    assert batcher.read(0.0) == []
    assert elsewhere.given == [(long.id, True)]
    # There is nothing to do, and were this process to die, it would be no fault of what is read elsewhere.
    assert batcher.wakes_at() is None
    assert batcher.unread() == set()
    assert batcher.room().interactive < before.interactive
    take(batcher, [job("5")])
    assert len(batcher.absorb(run(given(batcher)), 0.0)) == 1
    assert batcher.take_back(read(long, batcher), 0.0) == []
    (outcome,) = batcher.absorb(run(given(batcher)), 0.0)
    assert outcome.job is long
    assert vectors(outcome)[0][:2] == [INFO.max_tokens, 7]


def test_a_long_bulk_job_is_said_to_be_one(batcher: EmbeddingBatcher, elsewhere: Elsewhere) -> None:
    long = job(LONG, queue=BULK)
    batcher.add([long])
    batcher.read(0.0)
    assert elsewhere.given == [(long.id, False)]


def test_what_is_wrong_with_a_long_job_fails_it(batcher: EmbeddingBatcher) -> None:
    long = job(LONG)
    batcher.add([long])
    batcher.read(0.0)
    (outcome,) = batcher.take_back(ReadElsewhere(long.token, PoisonedJobError("input: no")), 0.0)
    assert isinstance(outcome, Failed)
    assert outcome.job is long


def test_a_long_job_that_is_forgotten_is_forgotten_elsewhere_and_does_not_come_back(
    batcher: EmbeddingBatcher, elsewhere: Elsewhere
) -> None:
    long = job(LONG)
    batcher.add([long])
    batcher.read(0.0)
    batcher.forget([long.id])
    assert elsewhere.forgotten == [long.token]
    assert batcher.take_back(read(long, batcher), 0.0) == []
    assert batcher.next_work(0.0) is None


def test_a_text_that_the_tokenizer_cannot_read_fails_its_job_alone(batcher: EmbeddingBatcher) -> None:
    good, bad, other = job("5", "6"), job("7", "13"), job("8")
    batcher.add([good, bad, other])
    (outcome,) = batcher.read(0.0)
    assert isinstance(outcome, Failed)
    assert outcome.job is bad
    assert str(outcome.error) == "input: item 1 cannot be read: the tokenizer of m fails (13)"
    assert sorted(done.job.id for done in batcher.absorb(run(given(batcher)), 0.0)) == sorted([good.id, other.id])


def test_what_is_no_fault_of_a_text_is_no_fault_of_its_job(batcher: EmbeddingBatcher) -> None:
    batcher.add([job("99")])
    with pytest.raises(KeyboardInterrupt):
        batcher.read(0.0)


def test_a_long_request_for_text_is_read_elsewhere_too(elsewhere: Elsewhere) -> None:
    batcher = GenerationBatcher(generating.INFO, worker="w", max_concurrent=2, elsewhere=elsewhere, clock=lambda: 0.0)
    long, forgotten = (replace(generating.job(LONG), token=token) for token in ("long", "forgotten"))
    batcher.add([long, forgotten])
    assert batcher.read(0.0) == []
    assert elsewhere.given == [(long.id, True), (forgotten.id, True)]
    assert batcher.wakes_at() is None
    assert batcher.room().interactive == 0
    request = batcher._requests.read(long.fields)
    batcher.forget([forgotten.id])
    assert elsewhere.forgotten == [forgotten.token]
    assert batcher.take_back(ReadElsewhere(forgotten.token, request), 0.0) == []
    assert batcher.take_back(ReadElsewhere(long.token, request), 0.0) == []
    work = batcher.next_work(0.0)
    assert work is not None
    assert work.prompt == LONG
    assert batcher.next_work(0.0) is None
    bad = replace(generating.job(LONG), token="bad")
    batcher.add([bad])
    batcher.read(0.0)
    (outcome,) = batcher.take_back(ReadElsewhere(bad.token, PoisonedJobError("data: no")), 0.0)
    assert isinstance(outcome, Failed)
    assert outcome.job is bad
    assert batcher.next_work(0.0) is None


def test_without_another_place_the_loop_reads_whatever_comes() -> None:
    batcher = batcher_of(OneTokenAWord(), max_batch_texts=8, max_batch_tokens=60, max_wait_s=0.0, clock=lambda: 0.0)
    batcher.add([job(LONG)])
    assert batcher.read(0.0) == []
    assert len(given(batcher).rows[0]) == INFO.max_tokens


def test_a_request_read_elsewhere_brings_rows_and_no_texts(batcher: EmbeddingBatcher) -> None:
    came = read(job(LONG, "5"), batcher).came
    assert isinstance(came, EncodedRequest)
    assert came.request.input == []
    assert [len(text.ids) for text in came.texts] == [INFO.max_tokens, 1]
