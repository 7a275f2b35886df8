"""Jobs into token rows, a few texts at a time, so that the loop is never held up by a large one.

Knows the order of the jobs; what is in one `RowRequests` knows. The long ones are read elsewhere.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ...errors import ImpetusError, InvalidRequestError
from ...leases.outcomes import Failed
from .long_jobs import LongJobs, is_urgent, payload_bytes
from .payload import LongPayloadError
from .rows import TEXTS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ...leases.claims import ClaimedJob
    from .long_jobs import Elsewhere
    from .rows import EncodedRequest, EncodedText, RowRequests

_MOST_A_SLICE = 128
"""So many jobs are looked at in one."""


@dataclass(eq=False, slots=True)
class ReadJob:
    """A job and the token rows of its texts, complete once there is one for each text."""

    job: ClaimedJob
    request: Any
    """As the role has them."""
    texts: list[EncodedText] = field(default_factory=list)

    @property
    def urgent(self) -> bool:
        return is_urgent(self.job)


class _Unread:
    """The jobs of one lane that are not yet read to their end, in the order in which they came."""

    def __init__(self) -> None:
        self.claimed: deque[ClaimedJob] = deque()
        """Not yet looked at."""
        self.payload_bytes = 0
        """Of those."""
        self.parsed: deque[ReadJob] = deque()
        """Not yet tokenised to their end."""

    def __len__(self) -> int:
        return len(self.claimed) + len(self.parsed)

    def add(self, job: ClaimedJob) -> None:
        self.claimed.append(job)
        self.payload_bytes += payload_bytes(job)

    def next_claimed(self) -> ClaimedJob:
        job = self.claimed.popleft()
        self.payload_bytes -= payload_bytes(job)
        return job

    def forget(self, job_ids: Collection[str]) -> None:
        self.claimed = deque(job for job in self.claimed if job.id not in job_ids)
        self.payload_bytes = sum(map(payload_bytes, self.claimed))
        self.parsed = deque(read for read in self.parsed if read.job.id not in job_ids)


class JobReader:
    """Reads jobs in the order in which they came, those that somebody waits for first.

    `elsewhere`: reads the long ones, in an order of its own. `clock`: in seconds, by which reading is cut into slices.
    """

    def __init__(
        self, requests: RowRequests[Any, Any], elsewhere: Elsewhere | None, clock: Callable[[], float]
    ) -> None:
        self._requests = requests
        self._clock = clock
        self._urgent, self._patient = _Unread(), _Unread()
        self._long = LongJobs(elsewhere)

    def jobs(self, *, urgent: bool) -> int:
        """How many jobs are not yet read to their end, here or elsewhere."""
        return len(self._lane(urgent)) + self._long.count(urgent=urgent)

    def payload_bytes(self, *, urgent: bool) -> int:
        """How large the payloads are that have not been looked at."""
        return self._lane(urgent).payload_bytes + self._long.payload_bytes(urgent=urgent)

    @property
    def has_unread(self) -> bool:
        """Whether a `read` has something to do."""
        return bool(self._urgent or self._patient)

    def unread(self) -> set[str]:
        """The ids of the jobs that a `read` may look at."""
        claimed = islice(chain(self._urgent.claimed, self._patient.claimed), _MOST_A_SLICE)
        begun = chain(self._urgent.parsed, self._patient.parsed)
        return {job.id for job in chain(claimed, (read.job for read in begun))}

    def add(self, job: ClaimedJob) -> None:
        """Takes a job in, and does not look at it yet."""
        self._lane(is_urgent(job)).add(job)

    def forget(self, job_ids: Collection[str]) -> None:
        for lane in (self._urgent, self._patient):
            if lane:
                lane.forget(job_ids)
        self._long.forget(job_ids)

    def take_back(self, token: str, came: EncodedRequest[Any] | ImpetusError) -> ReadJob | Failed | None:
        """What was read elsewhere, unless nobody wants it any more."""
        job = self._long.take_back(token)
        if job is None:
            return None
        if isinstance(came, ImpetusError):
            return Failed(job, came)
        return ReadJob(job, came.request, list(came.texts))

    def read(self, seconds: float) -> list[ReadJob | Failed]:
        """Parses and tokenises for about so long; returns the jobs that it read to their end, and those that end so."""
        done: list[ReadJob | Failed] = []
        stop_at, left = self._clock() + seconds, _MOST_A_SLICE
        for lane in (self._urgent, self._patient):
            while lane and left > 0 and self._clock() < stop_at:
                waiting = len(lane.claimed)
                done += self._parse_some(lane, left, stop_at)
                left -= waiting - len(lane.claimed)
                if lane.parsed:
                    done += self._tokenise_some(lane.parsed)
        return done

    def _lane(self, urgent: bool) -> _Unread:
        return self._urgent if urgent else self._patient

    def _parse_some(self, lane: _Unread, most: int, stop_at: float) -> list[Failed]:
        """Looks at jobs until there are texts enough to tokenise, at one at least and at no more than `most`; returns
        those that are refused.
        """
        refused: list[Failed] = []
        texts = sum(len(self._requests.texts(read.request)) - len(read.texts) for read in lane.parsed)
        for _ in range(min(most, len(lane.claimed))):
            if texts >= TEXTS_AT_ONCE:
                break
            job = lane.next_claimed()
            try:
                request = self._requests.parse(job.fields, self._long.most_bytes)
            except LongPayloadError:
                self._long.send(job)
            except InvalidRequestError as error:
                refused.append(Failed(job, error))
            else:
                texts += len(self._requests.texts(request))
                lane.parsed.append(ReadJob(job, request))
            if self._clock() >= stop_at:
                break
        return refused

    def _tokenise_some(self, queue: deque[ReadJob]) -> list[ReadJob | Failed]:
        """The next few texts in one call of the tokenizer, of as many jobs as they come from."""
        first = queue[0].request
        texts: list[Any] = []
        shares: list[tuple[ReadJob, int]] = []
        for read in queue:
            if len(texts) >= TEXTS_AT_ONCE or not self._requests.alike(first, read.request):
                break
            begun = len(read.texts)
            share = self._requests.texts(read.request)[begun : begun + TEXTS_AT_ONCE - len(texts)]
            shares.append((read, len(share)))
            texts += share
        try:
            encoded = iter(self._requests.encode(first, texts))
        except InvalidRequestError:
            return self._tokenise_apart([queue.popleft() for _ in shares])
        done: list[ReadJob | Failed] = []
        for read, size in shares:
            read.texts += islice(encoded, size)
            if len(read.texts) == len(self._requests.texts(read.request)):
                queue.popleft()
                done.append(self._checked(read))
        return done

    def _tokenise_apart(self, jobs: Sequence[ReadJob]) -> list[ReadJob | Failed]:
        """One of these jobs has a text that cannot be read, which is no concern of the others."""
        done: list[ReadJob | Failed] = []
        for read in jobs:
            try:
                read.texts += self._requests.encode_alone(read.request, len(read.texts))
            except InvalidRequestError as error:
                done.append(Failed(read.job, error))
            else:
                done.append(self._checked(read))
        return done

    def _checked(self, read: ReadJob) -> ReadJob | Failed:
        try:
            self._requests.check(read.request, read.texts)
        except InvalidRequestError as error:
            return Failed(read.job, error)
        return read
