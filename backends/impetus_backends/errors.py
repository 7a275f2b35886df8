"""Every error this package raises, under one base."""

from __future__ import annotations


class BackendError(Exception):
    """The base of every error that a backend raises on purpose."""


class BackendUnavailableError(BackendError):
    """This backend cannot serve here: a package is missing, the hardware lacks, or it failed its golden check."""


class ModelError(BackendError):
    """The model cannot be found, read, or run by this package. Says where it was looked for."""


class RequestError(BackendError):
    """One request cannot be served by this model. Permanent, and fails alone."""
