"""Every error this package raises, under one base. Each carries one sentence that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract import GenerationResult


class ImpetusError(Exception):
    """The base of every error that Impetus raises on purpose."""


class InvalidRequestError(ImpetusError):
    """A request or document breaks the contract. Permanent: sending it again fails again.

    `field`: which part of it, such as `messages.0.content`; empty where it is about the whole. `code`: what is wrong
    with it, as OpenAI's API names it.
    """

    def __init__(self, message: str, *, field: str = "", code: str = "invalid_value") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class MissingExtraError(ImpetusError):
    """A feature needs an optional package that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra: pip install 'impetus-batch[{extra}]'")
        self.extra = extra


class ServerError(ImpetusError):
    """The Redis or Valkey server cannot do what it was asked to. The base of the five below."""


class NoServerError(ServerError):
    """No server answers where one was expected."""


class ServerNotReadyError(ServerError):
    """The server answers, and cannot serve for now: it loads, is a replica, or cannot write to its disk."""


class ServerFullError(ServerError):
    """The server is out of memory. Nothing was enqueued."""


class ServerConfigurationError(ServerError):
    """The server can never serve as it is set up: its password, its access rights or its mode have to be changed."""


class ServerDataError(ServerError):
    """The server serves, and what lies there is not what should: a key of another type. Waiting does not help."""


class JobFailedError(ImpetusError):
    """The job ended as failed; `str(error)` is the worker's sentence, `reason` its type.

    `partial`: what a generation had made until then, where it had made anything.
    """

    def __init__(self, job_id: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id
        self.reason = reason
        self.partial: GenerationResult | None = None


class JobCancelledError(ImpetusError):
    """The job was cancelled or stopped before it had a result.

    `partial`: what a generation had made until then, where it had made anything.
    """

    partial: GenerationResult | None = None


class UnreadableResultError(ImpetusError):
    """What lies in Redis as the job's result is none of the contract's: something other than a worker wrote it."""

    def __init__(self, job_id: str, why: str) -> None:
        super().__init__(f"the result of job {job_id} cannot be read: {why}")
        self.job_id = job_id


class StreamRestartedError(ImpetusError):
    """The worker died, or had to begin anew: the text streamed so far is void. `stream()` again reads the new one."""


class JobNotFoundError(ImpetusError):
    """Redis knows no such job: its id is wrong, or its time to live ran out."""


class ResultTimeoutError(ImpetusError, TimeoutError):
    """The job had no result within the time given. It goes on: ask again later."""
