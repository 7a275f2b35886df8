"""Every error this package raises, under one base, and what becomes of a job that meets one."""

from __future__ import annotations

from impetus_producer.errors import ImpetusError, InvalidRequestError, MissingExtraError

__all__ = [
    "ConfigurationError",
    "EngineDiedError",
    "ImpetusError",
    "InferenceError",
    "InvalidRequestError",
    "JobTimeoutError",
    "LeaseLostError",
    "MissingExtraError",
    "PoisonedJobError",
    "ServiceError",
]


class ConfigurationError(ImpetusError):
    """The worker cannot start as it was told to. Trying again without a change fails again."""


class InferenceError(ImpetusError):
    """The model could not serve this request."""


class EngineDiedError(ImpetusError):
    """The engine process ended though nobody told it to."""


class PoisonedJobError(ImpetusError):
    """The engine, or the process that reads long jobs, died each time that it had this job and nothing else."""


class LeaseLostError(ImpetusError):
    """The job is another worker's by now."""


class ServiceError(ImpetusError):
    """The system did not take the worker as a service; the sentence says what to do instead."""


class JobTimeoutError(ImpetusError):
    """The job ran longer than its time limit."""
