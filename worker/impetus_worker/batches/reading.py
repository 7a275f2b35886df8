"""Jobs into token rows, a few texts at a time, so that the loop is never held up by a large one.

Checks of a request what only the model in service can tell. Knows the tokenizer; knows nothing of batches.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

from impetus_producer.contract import EMBED_FUNCTION, EMBEDDING_QUEUE, EmbeddingRequest, parse_request

from ..errors import InvalidRequestError
from ..leases.outcomes import Failed
from .batcher import check_model
from .payload import read_payload

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np

    from impetus_backends.protocol import EngineInfo

    from ..leases.claims import ClaimedJob

_TEXTS_AT_ONCE = 64


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


@dataclass(slots=True)
class _Lane:
    claimed: deque[ClaimedJob] = field(default_factory=deque)
    """Not yet looked at."""
    parsed: deque[ReadJob] = field(default_factory=deque)
    """Not yet tokenised to their end."""

    def __len__(self) -> int:
        return len(self.claimed) + len(self.parsed)

    def drop(self, job_id: str) -> None:
        self.claimed = deque(job for job in self.claimed if job.id != job_id)
        self.parsed = deque(read for read in self.parsed if read.job.id != job_id)


class JobReader:
    """Reads jobs in the order in which they came, those that somebody waits for first."""

    def __init__(self, info: EngineInfo, encoder: TextEncoder, allowed_callbacks: Collection[str]) -> None:
        self._info = info
        self._encoder = encoder
        self._allowed_callbacks = allowed_callbacks
        self._urgent, self._patient = _Lane(), _Lane()

    def __len__(self) -> int:
        """How many jobs are not yet read to their end."""
        return len(self._urgent) + len(self._patient)

    def add(self, job: ClaimedJob) -> None:
        """Takes a job in, and does not look at it yet."""
        (self._urgent if job.queue == EMBEDDING_QUEUE else self._patient).claimed.append(job)

    def drop(self, job_id: str) -> None:
        self._urgent.drop(job_id)
        self._patient.drop(job_id)

    def read(self, seconds: float) -> list[ReadJob | Failed]:
        """Parses and tokenises for about so long; returns the jobs that it read to their end, and those that end so."""
        done: list[ReadJob | Failed] = []
        stop_at = time.monotonic() + seconds
        for lane in (self._urgent, self._patient):
            while lane and time.monotonic() < stop_at:
                done += self._parse_some(lane)
                if lane.parsed:
                    done += self._tokenise_some(lane.parsed)
        return done

    def _parse_some(self, lane: _Lane) -> list[Failed]:
        """Looks at jobs until there are texts enough to tokenise; returns those whose request is refused."""
        refused: list[Failed] = []
        texts = sum(len(read.request.input) - len(read.texts) for read in lane.parsed)
        while lane.claimed and texts < _TEXTS_AT_ONCE:
            job = lane.claimed.popleft()
            try:
                request = self._parse(job)
            except InvalidRequestError as error:
                refused.append(Failed(job, error))
            else:
                texts += len(request.input)
                lane.parsed.append(ReadJob(job, request))
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
