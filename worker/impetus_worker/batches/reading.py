"""Jobs into token rows, a few texts at a time, so that the loop is never held up by a large one.

Checks of a request what only the model in service can tell. Knows the tokenizer; knows nothing of batches.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

from impetus_producer.contract import EMBED_FUNCTION, EMBEDDING_QUEUE, EmbeddingRequest
from impetus_producer.parsing import parse_request

from ..errors import InvalidRequestError
from ..leases.outcomes import Failed
from .batcher import check_model
from .payload import read_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import numpy as np

    from impetus_backends.protocol import EngineInfo

    from ..leases.claims import ClaimedJob

_TEXTS_AT_ONCE = 64
_MORE_THAN_A_SLICE = 512


class EncodedText(Protocol):
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def truncated(self) -> bool: ...


class TextEncoder(Protocol):
    def encode(
        self, texts: Sequence[str], *, input_type: Literal["query", "document"] | None = None
    ) -> Sequence[EncodedText]: ...


@dataclass(eq=False, slots=True)
class ReadJob:
    """A job and the token rows of its texts, complete once there is one for each text."""

    job: ClaimedJob
    request: EmbeddingRequest
    texts: list[EncodedText] = field(default_factory=list)

    @property
    def urgent(self) -> bool:
        return self.job.queue == EMBEDDING_QUEUE


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

    def jobs(self) -> Iterator[ClaimedJob]:
        yield from (read.job for read in self.parsed)
        yield from self.claimed

    def add(self, job: ClaimedJob) -> None:
        self.claimed.append(job)
        self.payload_bytes += _payload_bytes(job)

    def next_claimed(self) -> ClaimedJob:
        job = self.claimed.popleft()
        self.payload_bytes -= _payload_bytes(job)
        return job

    def forget(self, job_ids: Collection[str]) -> None:
        self.claimed = deque(job for job in self.claimed if job.id not in job_ids)
        self.payload_bytes = sum(map(_payload_bytes, self.claimed))
        self.parsed = deque(read for read in self.parsed if read.job.id not in job_ids)


class JobReader:
    """Reads jobs in the order in which they came, those that somebody waits for first.

    `clock`: in seconds, by which reading is cut into slices.
    """

    def __init__(
        self,
        info: EngineInfo,
        encoder: TextEncoder,
        allowed_callbacks: Collection[str],
        clock: Callable[[], float],
    ) -> None:
        self._info = info
        self._encoder = encoder
        self._allowed_callbacks = allowed_callbacks
        self._clock = clock
        self._urgent, self._patient = _Unread(), _Unread()

    def jobs(self, *, urgent: bool) -> int:
        """How many jobs are not yet read to their end."""
        return len(self._lane(urgent))

    def payload_bytes(self, *, urgent: bool) -> int:
        """How large the payloads are that have not been looked at."""
        return self._lane(urgent).payload_bytes

    def unread(self) -> set[str]:
        """The ids of the jobs that are read next, more than a slice of time can hold."""
        jobs = (job for lane in (self._urgent, self._patient) for job in lane.jobs())
        return {job.id for job in islice(jobs, _MORE_THAN_A_SLICE)}

    def add(self, job: ClaimedJob) -> None:
        """Takes a job in, and does not look at it yet."""
        self._lane(job.queue == EMBEDDING_QUEUE).add(job)

    def forget(self, job_ids: Collection[str]) -> None:
        for lane in (self._urgent, self._patient):
            if lane:
                lane.forget(job_ids)

    def read(self, seconds: float) -> list[ReadJob | Failed]:
        """Parses and tokenises for about so long; returns the jobs that it read to their end, and those that end so."""
        done: list[ReadJob | Failed] = []
        stop_at = self._clock() + seconds
        for lane in (self._urgent, self._patient):
            while lane and self._clock() < stop_at:
                done += self._parse_some(lane, stop_at)
                if lane.parsed:
                    done += self._tokenise_some(lane.parsed)
        return done

    def _lane(self, urgent: bool) -> _Unread:
        return self._urgent if urgent else self._patient

    def _parse_some(self, lane: _Unread, stop_at: float) -> list[Failed]:
        """Looks at jobs until there are texts enough to tokenise, at one at least; returns those that are refused."""
        refused: list[Failed] = []
        texts = sum(len(read.request.input) - len(read.texts) for read in lane.parsed)
        while lane.claimed and texts < _TEXTS_AT_ONCE:
            job = lane.next_claimed()
            try:
                request = self._parse(job)
            except InvalidRequestError as error:
                refused.append(Failed(job, error))
            else:
                texts += len(request.input)
                lane.parsed.append(ReadJob(job, request))
            if self._clock() >= stop_at:
                break
        return refused

    def _parse(self, job: ClaimedJob) -> EmbeddingRequest:
        request = parse_request(EmbeddingRequest, read_payload(job.fields, EMBED_FUNCTION, self._allowed_callbacks))
        check_model(request.model, self._info)
        if request.dimensions is not None and request.dimensions > self._info.dimensions:
            raise InvalidRequestError(
                f"dimensions: {self._info.model} makes vectors of {self._info.dimensions}, "
                f"and {request.dimensions} were asked for"
            )
        return request

    def _tokenise_some(self, queue: deque[ReadJob]) -> list[ReadJob | Failed]:
        """The next few texts in one call of the tokenizer, of as many jobs as they come from."""
        input_type = queue[0].request.input_type
        texts: list[str] = []
        shares: list[tuple[ReadJob, int]] = []
        for read in queue:
            if read.request.input_type != input_type or len(texts) >= _TEXTS_AT_ONCE:
                break
            begun = len(read.texts)
            share = read.request.input[begun : begun + _TEXTS_AT_ONCE - len(texts)]
            shares.append((read, len(share)))
            texts += share
        encoded = iter(self._encoder.encode(texts, input_type=input_type))
        done: list[ReadJob | Failed] = []
        for read, size in shares:
            read.texts += islice(encoded, size)
            if len(read.texts) == len(read.request.input):
                queue.popleft()
                done.append(self._checked(read))
        return done

    def _checked(self, read: ReadJob) -> ReadJob | Failed:
        if not read.request.truncate:
            for index, text in enumerate(read.texts):
                if text.truncated:
                    sentence = (
                        f"input: item {index} is longer than the {self._info.max_tokens} tokens that "
                        f"{self._info.model} reads, and 'truncate' is false"
                    )
                    return Failed(read.job, InvalidRequestError(sentence))
        return read


def _payload_bytes(job: ClaimedJob) -> int:
    return len(job.fields.get(b"data", b""))
